"""What billing needs from the books: units of work that are all or nothing."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from steelyard.billing.chargeback_books import ChargebackUnit
from steelyard.billing.event_preparation import PreparedBatch, PreparedEvent, UsagePath
from steelyard.billing.event_shares import EventShare
from steelyard.billing.fund_books import LeaseLook
from steelyard.billing.hourly_sums import UsageSums
from steelyard.billing.quarantine import QuarantineUnit
from steelyard.billing.re_rating import ReRatingUnit
from steelyard.billing.suspense import SuspenseUnit
from steelyard.billing.upstream_cost import UpstreamUnit
from steelyard.errors import Failure

# A source and a sequence in it.
Place = tuple[str, int]
EventOutcome = Literal["settled", "suspended"]
# Picos by organisation, payer, billed hour, grant and currency.
FundingSums = Mapping[tuple[str, str, str, str, str], int]


class PositionMoved(Failure):
    """Another worker has read this log further; this one must not post."""

    code = "position_moved"


class HeldFunds(NamedTuple):
    """What a hold has set aside, as far as settlement needs it; draws are still text.

    One that was granted from a lease has none; `stated` is what its gateway says that it cost.
    """

    payer_id: str
    currency: str
    picos: int
    draws: str
    budget_draws: str
    lease_id: str = ""
    stated: int = 0


class BookedEvent(NamedTuple):
    """An event as it goes into the books.

    `picos` is what it costs; of a suspended one what was suspended. `spent` says which grants that
    came from, in the order of burning, and `budget_draws` what its hold had reserved, as text.
    """

    event: PreparedEvent
    billed_at: str
    picos: int
    spent: str
    budget_draws: str
    outcome: EventOutcome


class QuarantinedEvent(NamedTuple):
    """A log record that must not move money, and why."""

    log_id: str
    position: int
    reason: str
    body: bytes


class BooksUnit(ReRatingUnit, SuspenseUnit, QuarantineUnit, ChargebackUnit, UpstreamUnit, Protocol):
    """One unit of work on the books; `set_aside` is what it has put into quarantine."""

    set_aside: list[QuarantinedEvent]

    def lock_held_funds(self, hold_ids: Collection[str]) -> dict[str, HeldFunds]:
        """What the open ones of these holds have set aside; nobody else ends them meanwhile."""
        ...

    def remove_holds(self, hold_ids: Collection[str]) -> None:
        """Holds end without a trace of their own: their events tell how."""
        ...

    def content_hashes(self, event_ids: Collection[str]) -> dict[str, bytes]:
        """The SHA-256 of the bytes of each of these events that the books know."""
        ...

    def places_taken(self, places: Collection[Place]) -> set[Place]:
        """Which of these places in the chain of a source have an event already."""
        ...

    def path_ids(self, paths: Sequence[UsagePath]) -> Sequence[int]:
        """The number of each of these paths; new paths get one."""
        ...

    def insert_events(
        self,
        booked: Sequence[BookedEvent],
        batch: PreparedBatch,
        *,
        path_ids: Sequence[int],
        at: datetime,
    ) -> None:
        """Keep events: their bytes in one compressed segment, and a row for each."""
        ...

    def insert_event_shares(self, shares: Sequence[EventShare]) -> None: ...

    def add_to_hours(
        self, usage: UsageSums, funding: FundingSums, *, path_ids: Sequence[int]
    ) -> None: ...

    def quarantine(self, events: Sequence[QuarantinedEvent], *, at: datetime) -> None:
        """Keep records for a person to look at; the same content is kept once."""
        ...

    def position(self, log_id: str) -> int:
        """How far this log is in the books; 0 for a new log."""
        ...

    def move_position(self, log_id: str, *, before: int, after: int) -> None:
        """Raises PositionMoved if the stored position is not `before`."""
        ...

    def open_hold_picos(self, *, source_prefix: str) -> Mapping[str, int]:
        """How much is held by those that are still open, of sources that begin so, by their ids in
        the order of their making."""
        ...


class Books(Protocol):
    """The books, in units of work."""

    def write(self) -> AbstractContextManager[BooksUnit]: ...

    def read_leases(self) -> AbstractContextManager[LeaseLook]: ...
