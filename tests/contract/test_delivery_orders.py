"""The same events in other batches, from other logs and in other orders lead to the same books."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from steelyard.app.stores import Stores, open_stores
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.event_preparation import prepare_batch
from steelyard.billing.settlement import settle_batch
from steelyard.billing.statement import Period, Statement, make_statement
from steelyard.billing.verification import verify_books
from steelyard.eventlog.log import LogRecord
from steelyard.gateway.upstreams.scripted import Script
from steelyard.settings import read_settings
from tests.deliveries import records_of
from tests.world import NOW, World

EVENTS = 9

# Which events come in which batch: a log, and their places in the outbox.
SCHEDULES: Mapping[str, Sequence[tuple[str, Sequence[int]]]] = {
    "one by one": [("a", [place]) for place in range(EVENTS)],
    "in threes": [("a", range(3)), ("a", range(3, 6)), ("a", range(6, 9))],
    "backwards": [("a", [place]) for place in reversed(range(EVENTS))],
    "two logs, the later first": [("b", range(5, 9)), ("a", range(5))],
    "two logs, in turns": [
        ("a", [0, 2]),
        ("b", [1]),
        ("b", [3, 5, 7]),
        ("a", [4]),
        ("a", [6, 8]),
    ],
    "some of them twice": [("a", range(6)), ("b", range(2, 9)), ("a", range(9))],
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_the_order_of_delivery_does_not_change_the_books(
    schedule: Sequence[tuple[str, Sequence[int]]], sqlite_world: World, tmp_path: Path
) -> None:
    _use(sqlite_world)
    bodies = [record.body for record in records_of(sqlite_world)]
    assert len(bodies) == EVENTS

    expected = _settle(sqlite_world, tmp_path / "one", [("a", range(EVENTS))], bodies)
    found = _settle(sqlite_world, tmp_path / "other", schedule, bodies)

    assert found == expected


def _use(world: World) -> None:
    """Requests of several prices, from two grants, each of which ends in an hour of its own."""
    acme = world.organisation(dollars="0.0000000005")
    for number in range(EVENTS):
        world.upstream.script = Script(words=("a",) * (number % 4), prompt_tokens=1 + 3 * number)
        world.top_up(acme, "0.0005")
        assert world.chat(max_tokens=5).error is None
        world.clock.advance(seconds=1500)


def _settle(
    world: World, folder: Path, schedule: Sequence[tuple[str, Sequence[int]]], bodies: list[bytes]
) -> tuple[dict[str, int], set[object], Statement]:
    """Settle on a copy of the books; everything that follows from the events alone."""
    stores = _copy(world, folder)
    rating = BatchRating(stores.audit.price_documents())
    ends: dict[str, int] = {}
    for log_id, places in schedule:
        first = ends.get(log_id, 0) + 1
        records = [LogRecord(first + i, bodies[place]) for i, place in enumerate(places)]
        ends[log_id] = records[-1].position
        batch = prepare_batch(records, log_id=log_id, rating=rating)
        with stores.books.write() as unit:
            settle_batch(batch, unit, at=world.clock.now())
    with stores.audit.snapshot() as snapshot:
        assert [d for check in verify_books(snapshot) for d in check.differences] == []
        balances = dict(snapshot.balances())
        hours: set[object] = {(row.table, row.key, row.sums) for row in snapshot.hours()}
    with stores.reports.snapshot() as snapshot:
        period = Period(NOW.replace(day=1), world.clock.now())
        statement = make_statement(snapshot, world.tenants["acme"], period=period)
    stores.database.close()
    return balances, hours, statement


def _copy(world: World, folder: Path) -> Stores:
    settings = read_settings(data_dir=folder)
    folder.mkdir()
    source, target = (sqlite3.connect(s.books_path) for s in (world.settings, settings))
    source.backup(target)
    source.close()
    target.close()
    return open_stores(settings)
