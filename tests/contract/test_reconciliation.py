"""Reconciliation: whatever is lost or changed in the books shows on a metric that is zero else."""

from collections.abc import Generator
from contextlib import nullcontext

import pytest
from sqlalchemy import Connection

from steelyard.billing.open_holds import mark_old_holds
from steelyard.billing.reconciliation import (
    MONEY_CHECKS,
    RECORD_CHECKS,
    Reconciled,
    Reconciliation,
)
from steelyard.entrypoints.worker_metrics import WorkerMetrics
from steelyard.eventlog.log import LogRecord
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.storage.reconciliation import SqlReconciledBooks, SqlReconciliation
from tests import tampered_books
from tests.conftest import DATABASES
from tests.deliveries import deliver, records_of, with_changes
from tests.tampered_books import one_row, tampered
from tests.world import World

NEWEST_EVENT = "id = (SELECT MAX(id) FROM usage_events)"
OLDEST_EVENT = "id = (SELECT MIN(id) FROM usage_events)"

# What happens to one row, and the checks that have to see it.
CHANGES = {
    "ledger_accounts: balance = balance + 1 WHERE kind = 'revenue'": {"ledger", "postings"},
    "ledger_accounts: balance = balance - 1 WHERE kind = 'held' AND balance > 0": {"holds"},
    "ledger_accounts: balance = balance + 1 WHERE kind = 'leased' AND balance > 0": {"leases"},
    "ledger_postings: picos = picos + 1 WHERE account_id = 'revenue:USD'": {"postings"},
    "open_holds: amount = amount + 1": {"holds"},
    "open_holds: payer_id = 'x'": {"holds"},
    "open_holds: status = 'unresolved'": {"unresolved_holds"},
    "leases: amount = amount - 1": {"leases"},
    "usage_events: amount = amount - 1 WHERE outcome = 'settled'": {
        "batches",
        "amounts",
        "events",
        "hours",
    },
    "usage_events: amount = amount + 1 WHERE outcome = 'suspended'": {"amounts"},
    "usage_events: outcome = 'suspended' WHERE outcome = 'settled'": {"batches", "suspense"},
    "usage_events: draws = '' WHERE outcome = 'settled'": {"batches"},
    "usage_events: charges = 'x' WHERE outcome = 'settled'": {"columns"},
    "usage_events: content_hash = {damaged}": {"columns"},
    "usage_events: path_id = 99": {"columns"},
    "usage_events: ended_at = '2026-11-24T12:00:59.000000Z'": {"columns"},
    "usage_events: sequence = sequence + 50": {"columns"},
    "usage_events: place = 99": {"batches"},
    "usage_hours: picos = picos - 1": {"hours"},
    "event_segments: body = {damaged}": {"records"},
    "event_segments: event_count = event_count + 1": {"records"},
    "event_segments: log_id = 'another'": {"positions"},
    "log_positions: position = position + 1": {"positions"},
}
LOSSES = {
    "ledger_accounts WHERE kind = 'revenue'": {"ledger", "postings"},
    "ledger_postings WHERE account_id = 'revenue:USD'": {"batches", "postings", "events"},
    "open_holds WHERE 1 = 1": {"holds"},
    "leases WHERE 1 = 1": {"leases"},
    f"usage_events WHERE {NEWEST_EVENT}": {"records"},
    f"usage_events WHERE {OLDEST_EVENT}": {"records", "batches"},
    "usage_hours WHERE meter = 'input.text'": {"hours"},
    "suspense_decisions WHERE 1 = 1": {"suspense"},
    "event_segments WHERE id = (SELECT MAX(id) FROM event_segments)": {"positions"},
    "event_segments WHERE id = (SELECT MIN(id) FROM event_segments)": {"gaps"},
    "quarantined_events WHERE 1 = 1": {"records"},
    "quarantine_dismissals WHERE 1 = 1": {"quarantine"},
    "log_positions WHERE 1 = 1": {"positions"},
}


@pytest.fixture(scope="module", params=DATABASES)
def busy_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[World]:
    yield from tampered_books.busy_world(request, tmp_path_factory)


def test_untouched_books_leave_nothing_unexplained(busy_world: World) -> None:
    reconciliation = Reconciliation(SqlReconciliation(busy_world.stores.database).snapshot)

    looks = [reconciliation.look(is_deep=True) for _ in range(3)]

    assert [(_wrong(found), found.records_behind) for found in looks] == [(set(), 0)] * 3
    assert looks[-1].balances["prepaid", "USD"] > 0
    assert looks[-1].holds.open_count > 0


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_is_on_the_metric(change: str, busy_world: World) -> None:
    table, _, rest = change.partition(": ")
    values, _, condition = rest.partition(" WHERE ")
    is_sqlite = busy_world.stores.database.is_sqlite
    values = values.replace("{damaged}", "x'00'" if is_sqlite else "'\\x00'::bytea")
    key, one = one_row(busy_world, table, condition)

    found = _found_after(busy_world, f"UPDATE {table} SET {values} WHERE {key} = ({one})")

    assert _wrong(found) >= CHANGES[change]
    assert _exposed(found) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_row_is_on_the_metric(loss: str, busy_world: World) -> None:
    found = _found_after(busy_world, f"DELETE FROM {loss}")

    assert _wrong(found) >= LOSSES[loss]
    assert _exposed(found) > 0


def test_every_check_is_shown_to_see_something() -> None:
    elsewhere = {"sequences", "floors"}

    shown = set[str]().union(*CHANGES.values(), *LOSSES.values())

    assert shown | elsewhere == {*MONEY_CHECKS, *RECORD_CHECKS}


def test_a_balance_that_two_changes_leave_even_is_seen_by_the_postings(busy_world: World) -> None:
    statement = """UPDATE ledger_accounts SET balance = balance
        + CASE kind WHEN 'clearing' THEN 1 ELSE -1 END WHERE kind IN ('clearing', 'revenue')"""

    found = _found_after(busy_world, statement)

    assert _wrong(found) == {"postings"}
    assert found.picos["postings"] == 2


def test_a_balance_below_its_floor_is_on_the_metric(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    reconciliation = Reconciliation(SqlReconciliation(sqlite_world.stores.database).snapshot)
    with sqlite_world.stores.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql(
            "UPDATE ledger_accounts SET floor = balance + 5 WHERE kind = 'prepaid'"
        )
        connection.commit()

    assert reconciliation.look().picos["floors"] == 5


def test_what_is_tampered_with_later_is_found_when_its_turn_comes(busy_world: World) -> None:
    statement = f"UPDATE usage_events SET amount = amount - 1 WHERE {OLDEST_EVENT}"
    reconciliation = Reconciliation(
        SqlReconciliation(busy_world.stores.database).snapshot, records_at_once=1
    )
    assert _wrong(reconciliation.look()) == set()

    with tampered(busy_world, statement) as connection:
        _look_through(reconciliation, connection)
        looks = 1
        while not reconciliation.look().picos["amounts"]:
            looks += 1
            assert looks < 10, "the patrol goes round"
    _look_at(reconciliation, busy_world)

    assert reconciliation.look().picos["amounts"] == 0, "what is mended is no alarm any more"


def test_a_missing_event_of_a_source_is_a_gap_until_it_comes(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(4):
        world.chat()
    records = records_of(world)
    reconciliation = Reconciliation(SqlReconciliation(world.stores.database).snapshot)
    reconciliation.look()

    deliver(world, [_moved(records[3], 1)], log_id="a")
    deliver(world, [_moved(records[0], 1)], log_id="b")
    first, second = reconciliation.look(), reconciliation.look()
    deliver(world, [_moved(records[1], 1), _moved(records[2], 2)], log_id="c")
    third = reconciliation.look()

    assert first.records["sequences"] == 0, "another log may bring them a moment later"
    assert second.records["sequences"] == 2
    assert _wrong(third) == set()


def test_a_gap_from_before_the_start_is_seen(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(3):
        world.chat()
    records = records_of(world)
    deliver(world, [_moved(records[0], 1), _moved(records[2], 2)], log_id="a")
    reconciliation = Reconciliation(SqlReconciliation(world.stores.database).snapshot)

    reconciliation.look()

    assert reconciliation.look().records["sequences"] == 1


def test_an_event_in_quarantine_waits_there_and_is_no_gap(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(3):
        world.chat()
    first, second, third = records_of(world)
    unreadable = encode_event(with_changes(decode_event(second.body), amount="much"))
    reconciliation = Reconciliation(SqlReconciliation(world.stores.database).snapshot)
    reconciliation.look()

    deliver(world, [first, LogRecord(2, unreadable), third], log_id="a")
    reconciliation.look()
    found = reconciliation.look()

    assert _wrong(found) == {"quarantine"}


def test_a_suspended_event_and_a_forgotten_hold_wait_for_a_person(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    [sent] = records_of(world)
    wrong = encode_event(with_changes(decode_event(sent.body), amount="0.5"))
    reconciliation = Reconciliation(SqlReconciliation(world.stores.database).snapshot)

    deliver(world, [LogRecord(1, wrong)], log_id="a")
    world.chat()
    mark_old_holds(world.stores.books, placed_before=world.clock.now().replace(year=2100))
    found = reconciliation.look(is_deep=True)

    assert _wrong(found) == {"suspense", "unresolved_holds"}
    assert found.holds.unresolved_count == 1


def test_a_look_has_a_budget_and_says_what_is_left(world: World) -> None:
    world.organisation(dollars="1")
    reconciliation = Reconciliation(
        SqlReconciliation(world.stores.database).snapshot, records_at_once=2
    )
    reconciliation.look()
    for _ in range(5):
        world.chat()
        world.settle()

    behind = [reconciliation.look().records_behind for _ in range(3)]

    assert behind == [3, 1, 0]


def _moved(record: LogRecord, position: int) -> LogRecord:
    return LogRecord(position, record.body)


def _found_after(world: World, statement: str) -> Reconciled:
    """What is found by one who knew the books before; one who comes later finds it as well."""
    knew = Reconciliation(SqlReconciliation(world.stores.database).snapshot)
    assert _wrong(knew.look(is_deep=True)) == set()
    with tampered(world, statement) as connection:
        _look_through(knew, connection)
        knew.look(is_deep=True)
        found = knew.look(is_deep=True)
        later = Reconciliation(lambda: nullcontext(SqlReconciledBooks(connection)))
        later.look(is_deep=True)
        assert _wrong(later.look(is_deep=True)) or "log_positions" in statement
    return found


def _look_through(reconciliation: Reconciliation, connection: Connection) -> None:
    reconciliation.open_books = lambda: nullcontext(SqlReconciledBooks(connection))


def _look_at(reconciliation: Reconciliation, world: World) -> None:
    reconciliation.open_books = SqlReconciliation(world.stores.database).snapshot


def _wrong(found: Reconciled) -> set[str]:
    return {check for check, n in (*found.picos.items(), *found.records.items()) if n}


def _exposed(found: Reconciled) -> float:
    """What Prometheus reads as unexplained, in all."""
    metrics = WorkerMetrics()
    metrics.reconciled = lambda: found
    lines = metrics.expose().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("steelyard_unexplained")
    )
