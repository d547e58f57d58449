"""Events in suspense and records in quarantine: shown, decided on once, and billed as decided."""

import json
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.access.budget import set_budget
from steelyard.billing.commands import CommandIdTaken, new_command
from steelyard.billing.quarantine import (
    NoHoldToRelease,
    QuarantinedRecordDismissed,
    QuarantinedRecordNotFound,
    dismiss_record,
)
from steelyard.billing.refund import EventNotFound, refund_event
from steelyard.billing.suspense import (
    DecisionTooLarge,
    EventNotSuspended,
    SuspenseDecided,
    amount_of,
    decide_event,
    find_suspended,
)
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.eventlog.log import LogRecord
from steelyard.ledger.transaction import Command
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.money import read_decimal, write_decimal
from tests.deliveries import deliver, records_of, stands_on, with_changes
from tests.world import World


def test_what_is_decided_is_earned_and_the_rest_returns(world: World) -> None:
    event_id, held = _suspend(world)
    before = world.balance().total.picos

    decide_event(world.stores.books, event_id, picos=held // 4, command=_command(world))

    assert world.balance().total.picos == before + held - held // 4
    assert stands_on(world, "suspense:USD") == 0
    assert stands_on(world, "revenue:USD") == held // 4
    assert world.differences() == []


@pytest.mark.parametrize("part", [0, 1])
def test_all_or_nothing_of_it_can_be_charged(part: int, world: World) -> None:
    event_id, held = _suspend(world)

    decide_event(world.stores.books, event_id, picos=held * part, command=_command(world))

    assert stands_on(world, "revenue:USD") == held * part
    assert world.balance().total.picos == 10**12 - held * part
    assert world.differences() == []


def test_an_event_that_waits_is_a_difference_until_it_is_decided_on(world: World) -> None:
    event_id, _ = _suspend(world)

    assert any("suspense list" in difference for difference in world.differences())
    decide_event(world.stores.books, event_id, picos=0, command=_command(world))

    assert world.differences() == []
    assert world.stores.audit.waiting_counts() == (0, 0)


def test_each_side_of_the_disagreement_can_be_taken(world: World) -> None:
    event_id, _ = _suspend(world)
    documents = world.stores.audit.price_documents()
    [sent] = records_of(world)

    with world.stores.books.write() as unit:
        event = find_suspended(unit, event_id)

    assert amount_of(event, "gateway", documents) == read_decimal("0.5")
    assert amount_of(event, "worker", documents) == read_decimal(
        decode_event(sent.body).data.amount
    )


def test_a_decision_is_made_once(world: World) -> None:
    event_id, held = _suspend(world)
    books, command = world.stores.books, _command(world, "decision-1")

    first = decide_event(books, event_id, picos=held, command=command)
    again = decide_event(books, event_id, picos=held, command=command)

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert stands_on(world, "revenue:USD") == held
    with pytest.raises(SuspenseDecided):
        decide_event(books, event_id, picos=0, command=command)
    with pytest.raises(SuspenseDecided):
        decide_event(books, event_id, picos=held, command=_command(world))


def test_a_decision_that_cannot_be_changes_nothing(world: World) -> None:
    event_id, held = _suspend(world)
    before = world.balance()
    world.chat()
    world.settle()
    settled = next(event.id for event in world.events() if event.id != event_id)
    books = world.stores.books
    taken = _command(world, _first_command_of(world))

    for picos in (-1, held + 1):
        with pytest.raises(DecisionTooLarge):
            decide_event(books, event_id, picos=picos, command=_command(world))
    with pytest.raises(CommandIdTaken):
        decide_event(books, event_id, picos=0, command=taken)
    with pytest.raises(EventNotFound):
        decide_event(books, "nothing", picos=0, command=_command(world))
    with pytest.raises(EventNotSuspended):
        decide_event(books, settled, picos=0, command=_command(world))

    assert stands_on(world, "suspense:USD") == held
    assert world.balance().total.picos < before.total.picos


def test_a_statement_moves_it_from_suspense_to_what_was_decided(world: World) -> None:
    event_id, held = _suspend(world)
    waiting = world.statement().movements
    assert waiting
    assert (waiting.suspended.picos, "decide_suspense" in waiting.commands) == (held, False)

    decide_event(world.stores.books, event_id, picos=held // 4, command=_command(world))

    decided = world.statement().movements
    assert decided
    assert decided.suspended.picos == 0
    assert decided.commands["decide_suspense"].picos == -(held // 4)
    assert decided.closing == world.balance().total


def test_what_was_decided_can_be_refunded_and_no_more(world: World) -> None:
    event_id, held = _suspend(world)
    decide_event(world.stores.books, event_id, picos=held // 4, command=_command(world))

    refund_event(world.stores.books, event_id, picos=None, command=_command(world))

    assert world.balance().total.picos == 10**12
    assert world.differences() == []


def test_a_decision_counts_in_the_budgets_of_its_hold(world: World) -> None:
    organisation = world.organisation(dollars="1")
    for unit in ("money", "tokens"):
        budget = set_budget(
            organisation,
            scope="organisation",
            scope_id=organisation.id,
            unit=unit,
            amount=10**12,
            period="month",
            is_hard=True,
            at=world.clock.now(),
        )
        world.stores.budgets.insert_budget(budget)
    event_id, held = _suspend(world, should_open=False)

    decide_event(world.stores.books, event_id, picos=held, command=_command(world))

    standings = world.stores.budgets.standings(at=world.clock.now())
    used = {standing.budget.unit: standing.stands.used for standing in standings}
    [sent] = records_of(world)
    meters = decode_event(sent.body).data.meters
    assert used == {"money": held, "tokens": sum(int(count) for count in meters.values())}
    assert [standing.stands.reserved for standing in standings] == [0, 0]


def test_the_commands_of_suspense_decide_by_either_side(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_id, held = _suspend(world)
    _use_books_of(world, monkeypatch)

    [row] = _run("suspense", "list")
    shown = _run("suspense", "show", event_id)
    doctor = _finding("books")
    assert _code("suspense", "decide", event_id, "--reason", "r") == "decision_unclear"
    both = ("--free", "--as-worker", "--reason", "r")
    assert _code("suspense", "decide", event_id, *both) == "decision_unclear"
    assert _code("suspense", "decide", event_id, "--as-gateway", "--reason", "r") == (
        "decision_too_large"
    )
    decided = _run("suspense", "decide", event_id, "--as-worker", "--reason", "agreed")

    assert (row["id"], row["held"], row["gateway"]) == (event_id, write_decimal(held), "0.5")
    assert shown == row
    assert doctor["verdict"] == "bad"
    assert "1 events wait in suspense" in doctor["finding"]
    assert decided["amount"] == row["worker"]
    assert _run("suspense", "list") == []
    assert _run("suspense", "list", "--all")[0]["decided_for"] == "agreed"
    assert _finding("books")["verdict"] == "good"


def test_a_dismissed_record_is_no_difference_any_more(world: World) -> None:
    world.organisation(dollars="1")
    deliver(world, [LogRecord(1, b"garbage")], log_id="another-log")
    [record] = _quarantined(world)

    dismiss_record(
        world.stores.books,
        record[:8],
        should_release=False,
        command=_command(world),
    )

    assert world.differences() == []
    with pytest.raises(QuarantinedRecordDismissed):
        dismiss_record(world.stores.books, record, should_release=False, command=_command(world))
    with pytest.raises(QuarantinedRecordNotFound):
        dismiss_record(world.stores.books, "nothing", should_release=False, command=_command(world))


def test_the_hold_of_a_record_in_quarantine_can_be_released(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    [sent] = records_of(world)
    event = decode_event(sent.body)
    unreadable = encode_event(with_changes(event, amount="much"))
    deliver(world, [LogRecord(1, unreadable)], log_id="another-log")
    [record] = _quarantined(world)
    assert world.balance().held.picos > 0

    _, hold = dismiss_record(
        world.stores.books, record, should_release=True, command=_command(world)
    )

    assert hold
    assert hold.id == event.id
    assert world.balance().held.picos == 0
    assert world.balance().total.picos == 10**12
    assert world.differences() == []


def test_a_record_without_an_open_hold_releases_none(world: World) -> None:
    world.organisation(dollars="1")
    deliver(world, [LogRecord(1, b"garbage")], log_id="another-log")
    [record] = _quarantined(world)

    with pytest.raises(NoHoldToRelease):
        dismiss_record(world.stores.books, record, should_release=True, command=_command(world))

    assert world.stores.audit.waiting_counts() == (0, 1)


def test_the_commands_of_quarantine_show_and_dismiss(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.organisation(dollars="1")
    deliver(world, [LogRecord(1, b"garbage")], log_id="another-log")
    _use_books_of(world, monkeypatch)

    [row] = _run("quarantine", "list")
    shown = _run("quarantine", "show", row["record"][:10])
    _run("quarantine", "dismiss", row["record"], "--reason", "damaged disk")

    assert shown["body"] == "garbage"
    assert shown["hold_is_open"] is False
    assert _run("quarantine", "list") == []
    assert _run("quarantine", "list", "--all")[0]["dismissed_for"] == "damaged disk"
    assert _code("quarantine", "show", "nothing") == "quarantined_record_not_found"


def _suspend(world: World, *, should_open: bool = True) -> tuple[str, int]:
    """An event that states half a dollar where the worker rates far less; and what it held."""
    if should_open:
        world.organisation(dollars="1")
    world.chat()
    event = decode_event(records_of(world)[0].body)
    wrong = encode_event(with_changes(event, amount="0.5"))
    deliver(world, [LogRecord(1, wrong)], log_id="another-log")
    return event.id, read_decimal(event.data.held)


def _command(world: World, command_id: str | None = None) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because", command_id=command_id)


def _first_command_of(world: World) -> str:
    organisation = world.tenants["acme"]
    return world.stores.funds.history_of(organisation.id, limit=1)[0].id


def _quarantined(world: World) -> list[str]:
    with world.stores.books.write() as unit:
        return [r.content_hash for r in unit.list_quarantined(with_dismissed=False, limit=10)]


def _use_books_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(world.settings.data_dir))
    if world.settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", world.settings.database_url)


def _run(*words: str) -> Any:
    with capture_logs():
        result = CliRunner().invoke(application, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _finding(what: str) -> dict[str, str]:
    result = CliRunner().invoke(application, ["doctor", "--json"])
    return next(found for found in json.loads(result.stdout) if found["what"] == what)


def _code(*words: str) -> str:
    result = CliRunner().invoke(application, [*words, "--json"])
    assert isinstance(result.exception, SteelyardError), result.output
    return result.exception.code
