"""The same events in other batches, from other logs and in other orders lead to the same books, and
to the same invoices byte by byte."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from steelyard.access.tenant import Organisation
from steelyard.app.stores import Stores, open_stores
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.billing_period import read_month
from steelyard.billing.event_preparation import prepare_batch
from steelyard.billing.period_closing import close_period
from steelyard.billing.settlement import settle_batch
from steelyard.billing.statement import Period, Statement, make_statement
from steelyard.billing.verification import verify_books
from steelyard.eventlog.log import LogRecord
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.transaction import Command
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


# Closings among the batches: what comes after the first one is late, in whatever order it comes.
BEFORE_CLOSING: Mapping[str, tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]] = {
    "two batches": ([range(6)], [range(6, 9)]),
    "one by one": ([[place] for place in range(6)], [[6], [7], [8]]),
    "backwards": ([[5, 4], [3, 2, 1], [0]], [[8], [7, 6]]),
    "two outboxes": ([[0, 2, 4], [1, 3, 5]], [[7], [6, 8]]),
    "some of them twice": ([range(4), range(2, 6)], [range(9), [7]]),
}


@pytest.mark.parametrize("order", BEFORE_CLOSING.values(), ids=BEFORE_CLOSING.keys())
def test_the_order_of_delivery_does_not_change_a_byte_of_an_invoice(
    order: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    sqlite_world: World,
    tmp_path: Path,
) -> None:
    _use(sqlite_world)
    bodies = [record.body for record in records_of(sqlite_world)]

    expected = _invoices_of(sqlite_world, tmp_path / "one", BEFORE_CLOSING["two batches"], bodies)
    found = _invoices_of(sqlite_world, tmp_path / "other", order, bodies)

    assert found == expected
    assert [invoice.count('"used_in":"acme-0001"') > 0 for invoice in found] == [False, True]


def _invoices_of(
    world: World,
    folder: Path,
    order: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    bodies: list[bytes],
) -> list[str]:
    """The invoices of November and December, where each batch comes by a log of its own."""
    stores = _copy(world, folder)
    rating = BatchRating(stores.audit.price_documents())
    acme = world.tenants["acme"]
    assert isinstance(acme, Organisation)
    acme = replace(acme, tax_ppm=77_000)
    for month, batches in zip(("2026-11", "2026-12"), order, strict=True):
        period = read_month(month, time_zone=acme.time_zone)
        for number, places in enumerate(batches):
            records = [LogRecord(1 + i, bodies[place]) for i, place in enumerate(places)]
            batch = prepare_batch(records, log_id=f"{month}/{number}", rating=rating)
            with stores.books.write() as unit:
                settle_batch(batch, unit, at=period.start + timedelta(days=29))
        command = Command(month, period.end + timedelta(minutes=1), "test", "because")
        close_period(stores.books, acme, period=period, command=command)
    with stores.audit.snapshot() as snapshot:
        assert [d for check in verify_books(snapshot) for d in check.differences] == []
    with stores.invoices.snapshot() as invoices:
        documents = [issued.canonical for issued in invoices.invoices()]
    stores.database.close()
    return documents


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
