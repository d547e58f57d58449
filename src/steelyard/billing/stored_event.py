"""Events, transactions and sums as the books hold them: what verification compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from steelyard.billing.books import EventOutcome
from steelyard.billing.event_preparation import UsagePath
from steelyard.billing.hourly_sums import read_charges
from steelyard.ledger.hold import BudgetDraw, Draw, read_budget_draws, read_draws
from steelyard.metering.usage_event import UsageEvent, decode_event
from steelyard.money import Money


@dataclass(frozen=True, slots=True)
class TransactionRow:
    """A transaction with its postings; `template` is None where only postings are left of it."""

    id: str
    template: str | None
    reference: str
    postings: Mapping[str, int]
    is_sealed: bool


@dataclass(frozen=True, slots=True)
class AccountRow:
    id: str
    kind: str
    balance: int
    floor: int | None


@dataclass(frozen=True, slots=True)
class GrantRow:
    id: str
    payer_id: str
    kind: str
    currency: str

    @property
    def account_id(self) -> str:
        return f"prepaid:{self.payer_id}:{self.id}:{self.currency}"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """What is left of a lease, as its row says it; the parts may disagree."""

    id: str
    payer_id: str
    amount: Money
    draws: Sequence[Draw]
    budget_draws: Sequence[BudgetDraw]


@dataclass(frozen=True, slots=True)
class AdjustmentRow:
    id: str
    kind: str
    payer_id: str
    currency: str
    amount: int
    draws: str
    reference: str


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A part of a log, as it was delivered: the bytes of so many records."""

    id: int
    log_id: str
    first_position: int
    event_count: int
    bodies: Sequence[bytes]

    @property
    def batch(self) -> str:
        """The reference of the transactions that were posted with it."""
        return f"{self.log_id}/{self.first_position}"


class EventRow(NamedTuple):
    """The columns of an event, which were read out of its bytes."""

    id: str
    source: str
    sequence: int
    content_hash: bytes
    path: UsagePath
    segment_id: int
    place: int
    ended_at: str
    billed_at: str
    amount: int
    charges: str
    draws: str
    budget_draws: str
    outcome: EventOutcome


class ReplayedEvent(NamedTuple):
    """An event as its bytes say it, beside the row that was made of it."""

    row: EventRow
    said: UsageEvent
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class HourRow:
    """One row of a table of hourly sums: its name, its key and its sums."""

    table: str
    key: tuple[object, ...]
    sums: tuple[int, ...]


def is_readable(row: EventRow) -> bool:
    """Whether the texts of a row are what settlement writes; the checks go by that."""
    try:
        read_charges(row.charges)
        read_draws(row.draws)
        read_budget_draws(row.budget_draws)
    except (ValueError, TypeError, AssertionError):
        return False
    return True


def try_decode(body: bytes) -> UsageEvent | None:
    try:
        return decode_event(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
