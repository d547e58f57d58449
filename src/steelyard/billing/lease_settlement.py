"""What a batch of events spends of the leases that their holds were granted from.

A hold of a lease has no row in the books. Its event names the lease, and spends what it costs of
what is left there; nothing goes back with it, since its gateway grants the rest again. The lease
goes with its last event.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from steelyard.billing.books import BooksUnit, HeldFunds
from steelyard.billing.budgets import BudgetUse
from steelyard.billing.event_preparation import PreparedEvent
from steelyard.ledger.hold import BudgetDraw, Draw, burn, write_budget_draws
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Transaction, return_lease
from steelyard.money import Money

log = structlog.get_logger()


@dataclass(slots=True)
class _Spending:
    """One lease while a batch is settled."""

    lease: Lease
    left: int
    draws: list[Draw]
    # The windows that its events are counted in, as text; each of them reserves nothing of its own.
    windows: str
    captured: int = 0
    charged: int = 0
    tokens: int = 0
    seen: set[str] = field(default_factory=set[str])

    def spend(self, picos: int) -> list[Draw]:
        first = self.draws[0] if self.draws else None
        self.left -= picos
        self.captured += picos
        if first is not None and first.picos > picos:
            self.draws[0] = Draw(first.grant_id, first.picos - picos)
            return [Draw(first.grant_id, picos)] if picos else []
        spent, self.draws = burn(self.draws, picos=picos)
        return spent

    def is_over(self) -> bool:
        return self.lease.status == "ended" and self.lease.last_event_id in self.seen

    def budget_uses(self) -> list[BudgetUse]:
        """What is no more reserved, because it was used or because the lease is over."""
        return [
            BudgetUse(replace(draw, amount=self._freed(draw)), used)
            for draw in self.lease.budget_draws
            for used in [self.charged if draw.unit == "money" else self.tokens]
        ]

    def kept(self) -> Lease:
        return replace(
            self.lease,
            amount=Money(self.left, self.lease.amount.currency),
            draws=tuple(self.draws),
            budget_draws=tuple(
                replace(draw, amount=draw.amount - self._freed(draw))
                for draw in self.lease.budget_draws
            ),
        )

    def _freed(self, draw: BudgetDraw) -> int:
        if self.is_over():
            return draw.amount
        return min(draw.amount, self.captured if draw.unit == "money" else self.tokens)


class LeaseSettlement:
    """The leases that a batch of events names, locked until the batch is in the books."""

    def __init__(self, leases: Mapping[str, Lease]) -> None:
        self._spending = {
            lease.id: _Spending(lease, lease.amount.picos, list(lease.draws), _windows_of(lease))
            for lease in leases.values()
        }

    def funds_of(self, event: PreparedEvent) -> HeldFunds | None:
        """What the hold of an event may spend of its lease; None if there is no such lease."""
        spending = self._spending.get(event.lease_id or "")
        if spending is None:
            return None
        lease = spending.lease
        return HeldFunds(
            payer_id=lease.payer_id,
            currency=lease.amount.currency,
            picos=event.held,
            draws="",
            budget_draws=spending.windows,
            lease_id=lease.id,
            stated=event.stated,
        )

    def spend(self, event: PreparedEvent, *, picos: int) -> tuple[int, list[Draw]]:
        """Take what an event costs from its lease, as far as there is any; what that came from."""
        assert event.lease_id is not None, f"event {event.id} names no lease"
        spending = self._spending[event.lease_id]
        if picos > spending.left:
            # The gateway has granted more than it had. The tenant's other money is not touched.
            log.error("lease.overdrawn", lease_id=event.lease_id, event_id=event.id)
            picos = spending.left
        spending.seen.add(event.id)
        return picos, spending.spend(picos)

    def use(self, event: PreparedEvent, *, charged: int, tokens: int) -> None:
        """Count what budgets see of an event."""
        spending = self._spending[event.lease_id or ""]
        spending.charged += charged
        spending.tokens += tokens

    def returns(self, *, at: datetime) -> list[Transaction]:
        """The rest of the leases that are over goes back."""
        over = [one.kept() for one in self._spending.values() if one.is_over()]
        returned = [return_lease(lease, back=lease.draws, at=at) for lease in over]
        return [transaction for transaction in returned if transaction]

    def budget_uses(self) -> list[BudgetUse]:
        return [use for one in self._spending.values() for use in one.budget_uses()]

    def save(self, unit: BooksUnit) -> None:
        touched = [one for one in self._spending.values() if one.seen]
        unit.keep_leases([one.kept() for one in touched if not one.is_over()])
        unit.remove_leases([one.lease.id for one in touched if one.is_over()])


def _windows_of(lease: Lease) -> str:
    return write_budget_draws([replace(draw, amount=0) for draw in lease.budget_draws])
