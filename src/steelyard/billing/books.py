"""What billing needs from the books: units of work that are all or nothing."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steelyard.errors import Failure
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.hold import Hold
from steelyard.ledger.store import LedgerUnit
from steelyard.metering.usage_event import UsageEvent
from steelyard.pricing.rating import ChargeLine

# A source and a sequence in it.
Place = tuple[str, int]
EventOutcome = Literal["settled", "suspended"]


class PositionMoved(Failure):
    """Another worker has read this log further; this one must not post."""

    code = "position_moved"


@dataclass(frozen=True, slots=True)
class RatedEvent:
    """An event with what the worker found that it costs."""

    event: UsageEvent
    content_hash: str
    body: bytes
    lines: Sequence[ChargeLine]
    outcome: EventOutcome


@dataclass(frozen=True, slots=True)
class QuarantinedEvent:
    """A log record that must not move money, and why."""

    content_hash: str
    log_id: str
    position: int
    reason: str
    body: bytes


class BooksUnit(LedgerUnit, Protocol):
    """One unit of work on the books."""

    def lock_balances(self, accounts: Collection[LedgerAccount]) -> dict[str, int]:
        """Balances by account id, which nobody else can change until the unit ends."""
        ...

    def content_hashes(self, event_ids: Collection[str]) -> dict[str, str]:
        """The content hash of each of these events that the books know."""
        ...

    def places_taken(self, places: Collection[Place]) -> set[Place]:
        """Which of these places in the chain of a source have an event already."""
        ...

    def insert_events(self, events: Sequence[RatedEvent], *, at: datetime) -> None: ...

    def quarantine(self, events: Sequence[QuarantinedEvent], *, at: datetime) -> None:
        """Keep records for a person to look at; the same content is kept once."""
        ...

    def position(self, log_id: str) -> int:
        """How far this log is in the books; 0 for a new log."""
        ...

    def move_position(self, log_id: str, *, before: int, after: int) -> None:
        """Raises PositionMoved if the stored position is not `before`."""
        ...

    def open_holds(self, *, source_prefix: str) -> list[Hold]:
        """Holds that are still placed, of sources that begin so."""
        ...


class Books(Protocol):
    """The books, in units of work."""

    def write(self) -> AbstractContextManager[BooksUnit]: ...
