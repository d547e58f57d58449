"""The lease desk: gives gateways slices of a payer's funds, and takes back what they do not need.

Every method is one unit of work and waits for the database: call it from a thread. What a lease
may be of is in `lease_sizing.py`; how its events spend it is in `lease_settlement.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from steelyard.billing.budgets import BudgetReservations, BudgetUse, settle_budget_draws
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.lease_sizing import LeaseSize, size_lease
from steelyard.ids import new_id
from steelyard.ledger.grant import GrantBalance, draw
from steelyard.ledger.hold import CREDIT_LINE, Draw, Hold, HoldScope
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Command, lease_funds, return_lease
from steelyard.money import Currency, Money


@dataclass(frozen=True, slots=True)
class LeaseWanted:
    """A gateway wants to grant holds of one key in memory.

    `hold` is like the holds that it expects, `size` what it would like to have.
    """

    payer_id: str
    currency: Currency
    scope: HoldScope
    source: str
    hold: LeaseSize
    size: LeaseSize
    at: datetime


class LeaseDesk:
    """Leases funds, linked over money and all budgets above a key: all of it, or nothing."""

    def __init__(self, books: FundBooks, *, ttl: timedelta) -> None:
        self._books = books
        self._ttl = ttl

    def take(self, wanted: LeaseWanted) -> Lease | None:
        """A lease, as large as wanted or smaller; None where funds or budgets are thin."""
        with self._books.write() as unit:
            return self._take(unit, wanted)

    def give_back(self, lease_id: str, size: LeaseSize, *, at: datetime) -> None:
        """Drain a lease, and return what its gateway has free of it and grants no more."""
        with self._books.write() as unit:
            lease = unit.lock_leases([lease_id]).get(lease_id)
            if lease is None:
                return
            status = "ended" if lease.status == "ended" else "drained"
            _give_back(unit, replace(lease, status=status), size, at=at)

    def end(self, lease_id: str, *, last_event_id: str | None, at: datetime) -> None:
        """Say which event is the last of a lease: once it is in the books, the rest goes back.

        Call it when nothing is granted from the lease any more and every hold that was ever granted
        from it has its event in the outbox; `last_event_id` is the one that comes last there, None
        if there is none at all. Whoever recovers a dead gateway calls it after it has written the
        events of what was left open. Saying it twice is saying it once.
        """
        with self._books.write() as unit:
            lease = unit.lock_leases([lease_id]).get(lease_id)
            if lease is None:
                return
            if last_event_id is None or _is_done_with(unit, last_event_id):
                return_rest(unit, lease, at=at)
            else:
                unit.keep_leases([replace(lease, status="ended", last_event_id=last_event_id)])

    def recall(self, owner_id: str) -> Sequence[str]:
        """Ask for every lease of a payer, or of an organisation, back; those still to come."""
        with self._books.write() as unit:
            unit.recall_leases(owner_id)
            return unit.leases_in_hand(owner_id)

    def in_hand(self, owner_id: str) -> Sequence[str]:
        """The leases of a payer, or of an organisation, that holds may still be granted from."""
        with self._books.write() as unit:
            return unit.leases_in_hand(owner_id)

    def recalled(self, *, source: str) -> Sequence[str]:
        """The leases that this gateway is asked to give back."""
        with self._books.write() as unit:
            return unit.recalled_leases(source=source)

    def left_by(self, *, source_prefix: str) -> Sequence[Lease]:
        """The leases of gateways whose source begins so: of earlier lives, for recovery."""
        with self._books.write() as unit:
            return unit.leases_of(source_prefix=source_prefix)

    def _take(self, unit: FundUnit, wanted: LeaseWanted) -> Lease | None:
        payer_id, currency, at = wanted.payer_id, wanted.currency, wanted.at
        grants, credit = unit.lock_funds([payer_id], currency=currency)[payer_id]
        probe = Hold(new_id(), payer_id, Money(0, currency), wanted.source, at, "{}")
        budgets = BudgetReservations(unit, placed=[(probe, wanted.scope)], grown=[])
        budget_picos, budget_tokens = budgets.room_for(probe, wanted.scope)
        size = size_lease(
            wanted.size,
            hold=wanted.hold,
            available=_available(grants, credit, at=at),
            budget_picos=budget_picos,
            budget_tokens=budget_tokens,
        )
        if size is None:
            return None
        draws = draw(grants, picos=size.picos, credit_picos=max(0, credit), at=at)
        assert draws is not None, "a share of what is available is available"
        reserving = replace(probe, amount=Money(size.picos, currency))
        scope = replace(wanted.scope, tokens_max=size.tokens)
        lease = Lease(
            id=probe.id,
            organisation_id=scope.organisation_id,
            payer_id=payer_id,
            key_id=scope.key_id,
            source=wanted.source,
            amount=Money(size.picos, currency),
            granted_at=at,
            expires_at=self._expiry(grants, draws, budgets.renews_at(probe, scope), at=at),
            draws=tuple(draws),
            budget_draws=tuple(budgets.draws_for(reserving, scope)),
        )
        unit.insert_lease(lease)
        if draws:
            unit.post([lease_funds(lease)])
        budgets.reserve(lease.budget_draws)
        budgets.save()
        return lease

    def _expiry(
        self,
        grants: Sequence[GrantBalance],
        draws: Sequence[Draw],
        renews_at: datetime | None,
        *,
        at: datetime,
    ) -> datetime:
        """No hold is granted of money that has expired, or in the window of yesterday."""
        drawn = {taken.grant_id for taken in draws if taken.grant_id != CREDIT_LINE}
        expiries = [balance.grant.expires_at for balance in grants if balance.grant.id in drawn]
        ends = [at + self._ttl, *(end for end in (*expiries, renews_at) if end is not None)]
        return min(ends)


def return_rest(
    unit: FundUnit, lease: Lease, *, at: datetime, command: Command | None = None
) -> None:
    """All that is left of a lease goes back to grants and budgets, and the lease is gone."""
    returned = return_lease(lease, back=lease.draws, at=at, command=command)
    unit.post([returned] if returned else [])
    unit.remove_leases([lease.id])
    settle_budget_draws(unit, [BudgetUse(draw, 0) for draw in lease.budget_draws], at=at)


def _is_done_with(unit: FundUnit, event_id: str) -> bool:
    """Whether an event is in the books, or was set aside for good: it moves nothing any more."""
    return bool(unit.hold_ends([event_id]) or unit.events_dismissed([event_id]))


def _available(grants: Sequence[GrantBalance], credit: int, *, at: datetime) -> int:
    live = sum(balance.picos for balance in grants if balance.grant.is_live(at=at))
    return live + max(0, credit)


def _give_back(unit: FundUnit, lease: Lease, size: LeaseSize, *, at: datetime) -> None:
    """Return part of a lease to grants and budgets; the lease keeps the rest."""
    kept, back, freed = lease.less(picos=size.picos, tokens=size.tokens)
    returned = return_lease(lease, back=back, at=at)
    unit.post([returned] if returned else [])
    unit.keep_leases([kept])
    settle_budget_draws(unit, [BudgetUse(draw, 0) for draw in freed], at=at)
