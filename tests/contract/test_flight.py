"""Open holds are requests in flight: `steelyard verify` compares them with the outboxes here."""

import json
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.commands import new_command
from steelyard.billing.open_holds import mark_old_holds, release_open_hold
from steelyard.billing.quarantine import dismiss_record
from steelyard.clock import SystemClock
from steelyard.entrypoints.cli.main import application
from steelyard.eventlog.log import LogRecord
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.ledger.transaction import Command
from steelyard.metering.usage_event import decode_event, encode_event
from steelyard.money import Money
from tests.deliveries import deliver, records_of, with_changes
from tests.fund_world import USD
from tests.unit.test_outbox_segments import an_attempt
from tests.world import World


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose books and outboxes the command line finds; it is long ago there."""
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(world.settings.data_dir))
    if world.settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", world.settings.database_url)
    world.organisation(dollars="1")
    return world


def test_requests_in_flight_and_events_on_their_way_explain_their_holds(here: World) -> None:
    seen: list[list[str]] = []
    here.chat()

    here.chat(stream=True, watches=lambda: seen.append(_differences()))

    assert seen
    assert seen[0] == []
    assert _compared() == 2 * 2
    here.settle()
    assert _differences() == []


def test_a_hold_that_its_gateways_outbox_does_not_know_is_a_difference(here: World) -> None:
    hold = _place(here, here.outbox.source)

    assert _differences() == [f"hold {hold.id} of {hold.source} has no attempt in its outbox"]
    release_open_hold(here.stores.books, hold.id, command=_command(here))
    assert _differences() == []


def test_the_attempt_of_a_dead_gateway_waits_for_its_next_life(here: World) -> None:
    hold = _place(here, here.outbox.source)
    here.outbox.open(an_attempt(hold.id)).done.result(timeout=10)
    here.stop_gateway()

    assert _differences() == []
    here.start_gateway()


def test_a_hold_of_another_machine_cannot_be_compared(here: World) -> None:
    _place(here, "urn:steelyard:gateway:elsewhere:1")

    assert _differences() == []


def test_a_hold_of_this_moment_is_passed_over(here: World) -> None:
    _place(here, here.outbox.source, is_young=True)

    assert _differences() == []


def test_a_hold_that_is_open_for_too_long_is_a_difference(here: World) -> None:
    hold = _place(here, "urn:steelyard:gateway:elsewhere:1")
    mark_old_holds(here.stores.books, placed_before=SystemClock().now())

    [difference] = _differences()

    assert difference.startswith(f"hold {hold.id} is open since 2026-11-24")


def test_a_lease_that_waits_for_what_is_done_with_is_a_difference(here: World) -> None:
    for _ in range(2):
        here.chat()
    here.keep_leases()
    here.chat()
    here.settle()
    [lease] = here.holding.lease_desk.left_by(source_prefix="")
    last, to_come = here.events()[-1].id, new_id()
    assert _differences() == []

    with here.stores.books.write() as unit:
        unit.keep_leases([replace(lease, status="ended", last_event_id=last)])
    stuck = _differences()
    with here.stores.books.write() as unit:
        unit.keep_leases([replace(lease, status="ended", last_event_id=to_come)])

    assert stuck == [
        f"lease {lease.id} waits for event {last}, which is done with: 'steelyard lease end'"
    ]
    assert _differences() == []


def test_a_record_in_quarantine_is_a_link_of_its_source(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(3):
        world.chat()
    second = decode_event(records_of(world)[1].body)
    release_open_hold(world.stores.books, second.id, command=_command(world))
    world.settle()
    with world.stores.books.write() as unit:
        [record] = unit.list_quarantined(with_dismissed=False, limit=10)
    command = _command(world)

    dismiss_record(world.stores.books, record.content_hash, should_release=False, command=command)

    assert [event.sequence for event in world.events()] == ["1", "3"]
    assert world.differences() == []


def test_a_forged_record_in_quarantine_hides_no_gap(world: World) -> None:
    world.organisation(dollars="1")
    for _ in range(3):
        world.chat()
    first, second, third = records_of(world)
    forged = encode_event(with_changes(decode_event(second.body), amount="much"))

    deliver(world, [first, LogRecord(2, forged), LogRecord(3, third.body)], log_id="a")

    broken = f"event {decode_event(third.body).id} does not follow the one before it"
    assert broken in world.differences()


def _place(world: World, source: str, *, is_young: bool = False) -> Hold:
    acme = world.tenants["acme"]
    placed_at = SystemClock().now() if is_young else world.clock.now()
    hold = Hold(new_id(), acme.id, Money(5, USD), source, placed_at, "{}")
    scope = HoldScope(acme.id, "a department", None, "a key", tokens_max=1)
    return world.hold_desk.place(hold, scope).result(timeout=30)


def _command(world: World) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because")


def _verified() -> dict[str, Any]:
    with capture_logs():
        result = CliRunner().invoke(application, ["verify", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["holds"] else 2)
    return found


def _differences() -> list[str]:
    return [one for check in _verified()["checks"] for one in check["differences"]]


def _compared() -> int:
    return _verified()["checks"][-1]["compared"]
