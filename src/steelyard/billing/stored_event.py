"""An event and its sums as the books hold them: what verification compares."""

from dataclasses import dataclass

from steelyard.billing.books import EventOutcome
from steelyard.billing.event_preparation import UsagePath


@dataclass(frozen=True, slots=True)
class EventRow:
    """The bytes of an event, and the columns that were read out of them.

    `batch` is the reference of the transactions that were posted with it.
    """

    id: str
    source: str
    sequence: int
    content_hash: bytes
    path: UsagePath
    batch: str
    ended_at: str
    billed_at: str
    amount: int
    charges: str
    draws: str
    outcome: EventOutcome
    body: bytes


@dataclass(frozen=True, slots=True)
class HourRow:
    """One row of a table of hourly sums: its name, its key and its sums."""

    table: str
    key: tuple[object, ...]
    sums: tuple[int, ...]
