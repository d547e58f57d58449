"""Quarantine: log records that must not move money, until a person has looked at them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec
import structlog

from steelyard.billing.fund_books import FundUnit
from steelyard.billing.lease_desk import return_rest
from steelyard.billing.open_holds import release_in_unit
from steelyard.errors import Refusal
from steelyard.ledger.hold import Hold
from steelyard.ledger.transaction import Command

log = structlog.get_logger()


class QuarantinedRecordNotFound(Refusal):
    """There is no such record in quarantine. 'steelyard quarantine list' shows what there is."""

    code = "quarantined_record_not_found"


class QuarantinedRecordDismissed(Refusal):
    """Somebody has looked at this record already."""

    code = "quarantined_record_dismissed"


class NoHoldToRelease(Refusal):
    """The record names no hold that is still open."""

    code = "no_hold_to_release"


@dataclass(frozen=True, slots=True)
class Dismissal:
    """Who looked at a record, and what they say about it."""

    dismissed_at: datetime
    actor: str
    reason: str
    released_hold_id: str | None


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A record of a log that moved no money, with the reason; `content_hash` is its name."""

    content_hash: str
    log_id: str
    position: int
    reason: str
    quarantined_at: datetime
    body: str
    dismissal: Dismissal | None

    @property
    def hold_id(self) -> str | None:
        """The hold that it says it ends; the record may be anything, or nothing that can be read."""
        try:
            return msgspec.json.decode(self.body, type=_Named).data.hold_id
        except (msgspec.DecodeError, msgspec.ValidationError):
            return None

    @property
    def event(self) -> tuple[str, str] | None:
        """The event that it says it is, and of which source."""
        try:
            event = msgspec.json.decode(self.body, type=_NamedEvent)
        except msgspec.DecodeError:
            return None
        return event.id, event.source


class _NamedHold(msgspec.Struct):
    hold_id: str


class _Named(msgspec.Struct):
    data: _NamedHold


class _NamedEvent(msgspec.Struct):
    id: str
    source: str


class QuarantineUnit(FundUnit, Protocol):
    """One unit of work on quarantine."""

    def find_quarantined(self, content_hash: str) -> Sequence[QuarantinedRecord]:
        """The records whose hash begins so, two at most."""
        ...

    def list_quarantined(self, *, with_dismissed: bool, limit: int) -> list[QuarantinedRecord]:
        """The oldest first."""
        ...

    def insert_dismissal(self, content_hash: str, dismissal: Dismissal) -> None: ...


class QuarantineBooks(Protocol):
    """The books, in units of work on quarantine."""

    def write(self) -> AbstractContextManager[QuarantineUnit]: ...


def find_record(unit: QuarantineUnit, content_hash: str) -> QuarantinedRecord:
    """The record of this hash, or of one that begins so; raises QuarantinedRecordNotFound."""
    found = unit.find_quarantined(content_hash)
    if not found:
        raise QuarantinedRecordNotFound(f"there is no record {content_hash!r} in quarantine")
    if len(found) > 1:
        raise QuarantinedRecordNotFound(f"more than one record begins with {content_hash!r}")
    return found[0]


def dismiss_record(
    books: QuarantineBooks, content_hash: str, *, should_release: bool, command: Command
) -> tuple[QuarantinedRecord, Hold | None]:
    """Say that somebody has looked: `verify` does not complain about the record any more.

    The hold that it names stays open unless it shall be released: it may be that of another
    request which is still running, whose own event is to come. A lease that waits for this record
    as its last event waits no more: what is left of it goes back.
    """
    with books.write() as unit:
        record = find_record(unit, content_hash)
        unit.wait_turn(record.content_hash)
        record = find_record(unit, record.content_hash)
        if record.dismissal is not None:
            raise QuarantinedRecordDismissed(f"{record.dismissal.actor} has dismissed it already")
        hold = _release(unit, record, command) if should_release else None
        # A hold with a row of its own was not granted from a lease.
        if hold is None:
            _end_leases(unit, record, command)
        released = hold.id if hold else None
        dismissal = Dismissal(command.at, command.actor, command.reason, released)
        unit.insert_dismissal(record.content_hash, dismissal)
    log.info("quarantine.dismissed", content_hash=record.content_hash, actor=command.actor)
    return record, hold


def _end_leases(unit: QuarantineUnit, record: QuarantinedRecord, command: Command) -> None:
    if record.event is None:
        return
    event_id, source = record.event
    locked = unit.lock_leases(unit.leases_ending_with(event_id))
    for lease in locked.values():
        if lease.last_event_id == event_id and lease.source == source:
            return_rest(unit, lease, at=command.at, command=command)
            log.info("lease.ended_by_dismissal", lease_id=lease.id, event_id=event_id)


def _release(unit: QuarantineUnit, record: QuarantinedRecord, command: Command) -> Hold:
    hold_id = record.hold_id
    if hold_id is None or not unit.read_holds([hold_id]):
        raise NoHoldToRelease
    return release_in_unit(unit, hold_id, command=command)
