"""Operators and leases: what is out, the lease of a lost machine, and one that waits for a record
in quarantine."""

import json
import shutil
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.commands import new_command
from steelyard.billing.quarantine import dismiss_record
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.eventlog.log import LogRecord
from steelyard.ids import new_id
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Command
from steelyard.metering.usage_event import decode_event, encode_event
from tests.deliveries import deliver, records_of, with_changes
from tests.unit.test_outbox_segments import an_attempt
from tests.world import World


@pytest.fixture
def busy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A gateway that serves `acme` from a lease, and one event of it that is not in the books."""
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(world.settings.data_dir))
    if world.settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", world.settings.database_url)
    world.organisation(dollars="1")
    for _ in range(2):
        world.chat()
    world.keep_leases()
    world.settle()
    world.chat()
    return world


def test_the_list_says_who_has_what_since_when(busy: World) -> None:
    lease = _only_lease(busy)

    [row] = _run("lease", "list")

    assert row["id"] == lease.id
    assert (row["gateway"], row["status"]) == ("world", "open")
    assert row["payer_id"] == busy.tenants["acme"].id
    assert row["amount"] == "0.008512"
    assert row["granted_at"] == "2026-11-24T12:00:00.000000Z"


def test_the_lease_of_a_gateway_that_runs_is_not_ended(busy: World) -> None:
    lease = _only_lease(busy)

    assert _refusal("lease", "end", lease.id, "--reason", "gone") == (
        "lease_in_use",
        "its gateway is running",
    )
    assert _only_lease(busy) == lease


def test_a_lease_whose_events_are_still_to_come_is_not_ended(busy: World) -> None:
    lease = _only_lease(busy)
    busy.stop_gateway()

    assert _refusal("lease", "end", lease.id, "--reason", "gone") == (
        "lease_in_use",
        "1 events of it",
    )
    assert _only_lease(busy) == lease
    busy.start_gateway()


def test_a_lease_with_an_open_attempt_is_not_ended(busy: World) -> None:
    lease = _only_lease(busy)
    busy.settle()
    _open_attempt(busy, lease)
    busy.stop_gateway()

    assert _refusal("lease", "end", lease.id, "--reason", "gone") == (
        "lease_in_use",
        "1 attempts that hold from it",
    )
    busy.start_gateway()


def test_a_lease_whose_outbox_is_elsewhere_is_ended_by_force_only(busy: World) -> None:
    lease = _only_lease(busy)
    busy.settle()
    busy.stop_gateway()
    outbox = busy.settings.outbox_dir / "world.outbox"
    outbox.rename(outbox.with_suffix(".elsewhere"))

    assert _refusal("lease", "end", lease.id, "--reason", "gone")[1] == "the outbox of"
    _run("lease", "end", lease.id, "--reason", "host lost", "--force")

    assert _run("lease", "list") == []
    assert busy.balance().held.picos == 0
    assert busy.differences() == []
    outbox.with_suffix(".elsewhere").rename(outbox)
    busy.start_gateway()


def test_a_lease_whose_outbox_is_settled_goes_back_with_who_and_why(busy: World) -> None:
    lease = _only_lease(busy)
    busy.settle()
    left = _only_lease(busy).amount.picos
    busy.stop_gateway()

    ended = _run("lease", "end", lease.id, "--reason", "host lost")

    assert ended["returned"] == "0.008478"
    assert busy.balance().held.picos == 0
    with busy.stores.books.write() as unit:
        booked = unit.find_transaction(f"{lease.id}/returned/{left}")
    assert booked
    assert booked.reason == "host lost"
    assert booked.actor
    assert busy.differences() == []
    assert _refusal("lease", "end", lease.id, "--reason", "again")[0] == "lease_not_found"
    busy.start_gateway()


def test_an_event_that_comes_after_all_is_quarantined_and_charges_nobody(busy: World) -> None:
    lease = _only_lease(busy)
    before = busy.balance().total
    _run("lease", "end", lease.id, "--reason", "host lost", "--force")

    busy.settle()

    assert busy.balance().total == before
    [record] = _quarantined(busy)
    assert f"names the lease {lease.id}, which is not there" in record


@pytest.mark.parametrize("is_ended_first", [True, False])
def test_a_lease_ends_when_its_last_event_is_dismissed_from_quarantine(
    is_ended_first: bool, busy: World
) -> None:
    lease = _only_lease(busy)
    busy.stop_gateway()
    last = decode_event(records_of(busy)[-1].body)
    unreadable = encode_event(with_changes(last, amount="much"))
    deliver(busy, [LogRecord(1, unreadable)], log_id="another-log")
    shutil.rmtree(busy.settings.outbox_dir)
    busy.settings.outbox_dir.mkdir()
    busy.start_gateway()
    desk = busy.holding.lease_desk

    if is_ended_first:
        desk.end(lease.id, last_event_id=last.id, at=busy.clock.now())
    assert busy.balance().held.picos == lease.amount.picos
    _dismiss_all(busy)
    if not is_ended_first:
        assert busy.balance().held.picos == lease.amount.picos, "holds may be granted from it"
        desk.end(lease.id, last_event_id=last.id, at=busy.clock.now())

    assert busy.balance().held.picos == 0
    assert _run("lease", "list") == []
    assert busy.differences() == []


def test_a_record_that_another_source_forged_ends_no_lease(busy: World) -> None:
    lease = _only_lease(busy)
    last = decode_event(records_of(busy)[-1].body)
    forged = json.loads(encode_event(with_changes(last, amount="much")))
    forged["source"] = "urn:somebody:else"
    deliver(busy, [LogRecord(1, json.dumps(forged).encode())], log_id="another-log")
    busy.holding.lease_desk.end(lease.id, last_event_id=last.id, at=busy.clock.now())

    _dismiss_all(busy)

    assert _only_lease(busy).status == "ended"
    busy.settle()
    assert busy.balance().held.picos == 0
    assert busy.differences() == []


def _only_lease(world: World) -> Lease:
    [lease] = world.holding.lease_desk.left_by(source_prefix="")
    return lease


def _open_attempt(world: World, lease: Lease) -> None:
    """An opening in the outbox that nobody closes."""

    attempt = msgspec.structs.replace(an_attempt(new_id()), lease_id=lease.id)
    world.outbox.open(attempt).done.result(timeout=10)


def _command(world: World) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because")


def _dismiss_all(world: World) -> None:
    with world.stores.books.write() as unit:
        records = unit.list_quarantined(with_dismissed=False, limit=10)
    assert records
    for record in records:
        dismiss_record(
            world.stores.books, record.content_hash, should_release=False, command=_command(world)
        )


def _quarantined(world: World) -> list[str]:
    with world.stores.books.write() as unit:
        return [record.reason for record in unit.list_quarantined(with_dismissed=True, limit=10)]


def _run(*words: str) -> Any:
    with capture_logs():
        result = CliRunner().invoke(application, [*words, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def _refusal(*words: str) -> tuple[str, str]:
    """The code of a refusal, and how its message begins."""
    result = CliRunner().invoke(application, [*words, "--json"])
    assert isinstance(result.exception, SteelyardError), result.output
    message = str(result.exception)
    known = ("its gateway is running", "1 events of it", "1 attempts that hold from it")
    beginnings = (*known, "the outbox of", "there is no lease")
    return result.exception.code, next(b for b in beginnings if message.startswith(b))
