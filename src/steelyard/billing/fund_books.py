"""What holds, budgets and money commands need from the books."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from steelyard.access.budget import Budget, BudgetWindow
from steelyard.ledger.grant import Grant
from steelyard.ledger.hold import Draw, Hold
from steelyard.ledger.lease import Lease
from steelyard.ledger.store import LedgerUnit
from steelyard.ledger.transaction import Transaction
from steelyard.money import Money

# A budget and the name of one of its windows.
WindowKey = tuple[str, str]
AdjustmentKind = Literal["refund", "correction", "re_rating", "suspense"]


@dataclass(frozen=True, slots=True)
class BudgetAlert:
    """So many per cent of a window of a budget are used."""

    budget: Budget
    window: str
    percent: int
    used: int


@dataclass(frozen=True, slots=True)
class ChargedEvent:
    """A usage event as far as a refund needs it; `charged` is what it costs after re-rating."""

    id: str
    organisation_id: str
    department_id: str
    payer_id: str
    charged: Money
    draws: Sequence[Draw]
    outcome: Literal["settled", "suspended"]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """An amount in a tenant's favour (positive) or against it, by command: one transaction.

    `reference` is the event that it adjusts, or its own id. `draws` are the places that the money
    went to or came from.
    """

    id: str
    kind: AdjustmentKind
    organisation_id: str
    department_id: str
    payer_id: str
    amount: Money
    draws: Sequence[Draw]
    reference: str
    billed_at: datetime


class BudgetBooks(Protocol):
    """Budgets as one unit of work sees them."""

    def live_budgets(self, scope_ids: Collection[str]) -> list[Budget]:
        """The budgets of these organisations, departments, projects and keys, the widest first."""
        ...

    def budgets(self, budget_ids: Collection[str]) -> list[Budget]: ...

    def lock_windows(self, keys: Collection[WindowKey]) -> dict[WindowKey, BudgetWindow]:
        """Windows, opened where they are new; nobody else can change them until the unit ends."""
        ...

    def set_windows(self, windows: Mapping[WindowKey, BudgetWindow]) -> None: ...

    def insert_alerts(self, alerts: Sequence[BudgetAlert], *, at: datetime) -> list[BudgetAlert]:
        """Those of these alerts that are new: each is raised once per window."""
        ...


class LeaseLook(Protocol):
    """What gateways ask of leases again and again."""

    def leases_in_hand(self, owner_id: str) -> list[str]:
        """The leases of a payer, or of an organisation, that holds may still be granted from."""
        ...

    def recalled_leases(self, *, source: str) -> list[str]:
        """The leases that this gateway is asked to give back."""
        ...


class LeaseBooks(LeaseLook, Protocol):
    """Leases as one unit of work sees them."""

    def insert_lease(self, lease: Lease) -> None: ...

    def lock_leases(self, lease_ids: Collection[str]) -> dict[str, Lease]:
        """Those of these leases that are there; nobody else can change them until the unit ends."""
        ...

    def keep_leases(self, leases: Sequence[Lease]) -> None:
        """Write down what is left of leases, and how they stand."""
        ...

    def remove_leases(self, lease_ids: Collection[str]) -> None: ...

    def recall_leases(self, owner_id: str) -> None:
        """Ask for the open leases of a payer, or of an organisation, back."""
        ...

    def leases_of(self, *, source_prefix: str) -> list[Lease]:
        """The leases of gateways whose source begins so."""
        ...

    def leases_ending_with(self, event_id: str) -> list[str]:
        """The leases that wait for this event as their last."""
        ...

    def events_dismissed(self, event_ids: Collection[str]) -> set[str]:
        """Which of these events went to quarantine, where somebody has dismissed them."""
        ...


class FundUnit(LedgerUnit, BudgetBooks, LeaseBooks, Protocol):
    """One unit of work on funds."""

    def wait_turn(self, name: str) -> None:
        """Whoever else waits for this name goes on when the unit ends. Call this first."""
        ...

    def find_transaction(self, transaction_id: str) -> Transaction | None: ...

    def find_grant(self, grant_id: str) -> Grant | None: ...

    def expired_grants(self, *, at: datetime, limit: int) -> list[Grant]:
        """Grants that have expired and still have something left."""
        ...

    def find_event(self, event_id: str) -> ChargedEvent | None: ...

    def find_adjustment(self, adjustment_id: str) -> Adjustment | None: ...

    def adjustments_of(self, reference: str) -> list[Adjustment]:
        """Refunds of an event and their undoings, in the order in which they were made."""
        ...

    def insert_adjustment(self, adjustment: Adjustment) -> None: ...

    def transactions_about(self, reference: str, *, template: str) -> list[str]:
        """The ids of the transactions of a template that name this reference."""
        ...

    def closed_until(self) -> Mapping[str, str]:
        """The end of the last closed period by organisation, as a timestamp.

        Nobody closes another period until the unit ends.
        """
        ...

    def mark_unresolved(self, *, placed_before: datetime) -> list[str]:
        """Mark holds that are open for too long; those that were not marked before."""
        ...

    def list_holds(self, *, only_unresolved: bool, limit: int) -> list[Hold]:
        """Open holds, the oldest first."""
        ...


class FundBooks(Protocol):
    """The books, in units of work on funds."""

    def write(self) -> AbstractContextManager[FundUnit]: ...

    def read_leases(self) -> AbstractContextManager[LeaseLook]:
        """A look at one moment, which waits for no writer and keeps none waiting."""
        ...
