"""The lease desk: gives gateways slices of a payer's funds, and takes back what they do not need.

Every method is one unit of work and waits for the database: call it from a thread. What a lease
may be of is in `lease_sizing.py`; how its events spend it is in `lease_settlement.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import msgspec

from steelyard.billing.budgets import (
    BudgetReservations,
    BudgetUse,
    grown_draws,
    settle_budget_draws,
)
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.lease_sizing import LeaseSize, size_lease
from steelyard.ids import new_id
from steelyard.ledger.grant import GrantBalance, draw
from steelyard.ledger.hold import CREDIT_LINE, Draw, Hold, HoldScope
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Command, grow_lease, lease_funds, return_lease
from steelyard.money import Currency, Money

NOTHING: Final = LeaseSize(0, 0)
# For so many holds more like the one that it needs a run sets money aside, where a share covers four.
HOLDS_AHEAD: Final = 16
# A run that takes longer reserves anew, and sees budgets that were set meanwhile.
RESERVED_FOR: Final = timedelta(hours=1)


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
            taking = _Taking(unit, wanted, lease_id=new_id())
            size = taking.share()
            return taking.take(size, ttl=self._ttl) if size is not None else None

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
        with self._books.read_leases() as look:
            return look.leases_in_hand(owner_id)

    def recalled(self, *, source: str) -> Sequence[str]:
        """The leases that this gateway is asked to give back."""
        with self._books.read_leases() as look:
            return look.recalled_leases(source=source)

    def left_by(self, *, source_prefix: str) -> Sequence[Lease]:
        """The leases of gateways whose source begins so: of earlier lives, for recovery."""
        with self._books.write() as unit:
            return unit.leases_of(source_prefix=source_prefix)

    def take_for_run(self, wanted: LeaseWanted, *, lease_id: str, run_id: str) -> Lease:
        """A lease of all that is wanted, for a run, and ahead of that where there is plenty: nobody
        calls it back, and only its source ends it.

        Raises HoldDeclined or BudgetExceeded, with nothing taken.
        """
        with self._books.write() as unit:
            taking = _Taking(unit, wanted, lease_id=lease_id)
            size = wanted.size + taking.ahead()
            return taking.take(size, ttl=RESERVED_FOR, run_id=run_id)

    def grow(self, lease_id: str, wanted: LeaseWanted) -> LeaseSize | None:
        """Add what is wanted to a lease of a run, and ahead of that where there is plenty; how much
        it was. None where the lease is not open any more.

        Raises HoldDeclined or BudgetExceeded, with nothing taken.
        """
        with self._books.write() as unit:
            lease = unit.lock_leases([lease_id]).get(lease_id)
            if lease is None or lease.status != "open":
                return None
            taking = _Taking(unit, wanted, lease_id=new_id(), grown=lease)
            more = wanted.size + taking.ahead()
            taking.grow(lease, more)
            return more


class _Taking:
    """What a lease may be taken of; nobody else can take of it until the unit ends."""

    def __init__(
        self, unit: FundUnit, wanted: LeaseWanted, *, lease_id: str, grown: Lease | None = None
    ) -> None:
        self._unit = unit
        self._wanted = wanted
        funds = unit.lock_funds([wanted.payer_id], currency=wanted.currency)
        self._grants, self._credit = funds[wanted.payer_id]
        nothing = Money(0, wanted.currency)
        # In a lease that grows, what is added is reserved in the windows that it has.
        unreserved = [replace(draw, amount=0) for draw in grown.budget_draws] if grown else []
        self._probe = Hold(
            lease_id,
            wanted.payer_id,
            nothing,
            wanted.source,
            wanted.at,
            "{}",
            budget_draws=unreserved,
        )
        self._budgets = BudgetReservations(
            unit, placed=[(self._probe, wanted.scope)], grown=[self._probe]
        )

    def share(self) -> LeaseSize | None:
        """As much of what is wanted as leaves enough for others; None where that is too thin."""
        return self._share(self._wanted.size, beside=NOTHING)

    def ahead(self) -> LeaseSize:
        """What of the next holds of a run a share pays for, beside what is wanted now."""
        next_holds = self._wanted.hold.times(HOLDS_AHEAD)
        return self._share(next_holds, beside=self._wanted.size) or NOTHING

    def take(self, size: LeaseSize, *, ttl: timedelta, run_id: str | None = None) -> Lease:
        """Raises HoldDeclined or BudgetExceeded, before anything is written."""
        wanted, amount = self._wanted, Money(size.picos, self._wanted.currency)
        scope = msgspec.structs.replace(wanted.scope, tokens_max=size.tokens)
        draws = _drawn(self._grants, self._credit, amount, at=wanted.at)
        budget_draws = self._budgets.draws_for(
            msgspec.structs.replace(self._probe, amount=amount), scope
        )
        lease = Lease(
            id=self._probe.id,
            organisation_id=scope.organisation_id,
            payer_id=wanted.payer_id,
            key_id=scope.key_id,
            source=wanted.source,
            amount=amount,
            granted_at=wanted.at,
            expires_at=self._expiry(draws, wanted.at + ttl),
            draws=tuple(draws),
            budget_draws=tuple(budget_draws),
            run_id=run_id,
        )
        self._unit.insert_lease(lease)
        if draws:
            self._unit.post([lease_funds(lease)])
        self._budgets.reserve(lease.budget_draws)
        self._budgets.save()
        return lease

    def grow(self, lease: Lease, more: LeaseSize) -> None:
        """Raises HoldDeclined or BudgetExceeded, before anything is written."""
        amount, at = Money(more.picos, self._wanted.currency), self._wanted.at
        draws = _drawn(self._grants, self._credit, amount, at=at)
        added = self._budgets.draws_to_grow(
            self._probe, picos=more.picos, tokens=more.tokens, at=at
        )
        grown = replace(
            lease,
            amount=lease.amount + amount,
            draws=(*lease.draws, *draws),
            budget_draws=tuple(grown_draws(lease.budget_draws, added)),
        )
        self._unit.keep_leases([grown])
        if draws:
            transaction_id = f"{lease.id}/leased/{self._probe.id}"
            grows = grow_lease(lease, draws=draws, transaction_id=transaction_id, at=at)
            self._unit.post([grows])
        self._budgets.reserve(added)
        self._budgets.save()

    def _share(self, size: LeaseSize, *, beside: LeaseSize) -> LeaseSize | None:
        picos, tokens = self._budgets.room_for(self._probe, self._wanted.scope)
        available = _available(self._grants, self._credit, at=self._wanted.at)
        return size_lease(
            size,
            hold=self._wanted.hold,
            available=available - beside.picos,
            budget_picos=None if picos is None else picos - beside.picos,
            budget_tokens=None if tokens is None else tokens - beside.tokens,
        )

    def _expiry(self, draws: Sequence[Draw], latest: datetime) -> datetime:
        """No hold is granted of money that has expired, or in the window of yesterday."""
        drawn = {taken.grant_id for taken in draws if taken.grant_id != CREDIT_LINE}
        grants = [balance.grant for balance in self._grants if balance.grant.id in drawn]
        ends = [*(grant.expires_at for grant in grants)]
        ends.append(self._budgets.renews_at(self._probe, self._wanted.scope))
        return min([latest, *(end for end in ends if end is not None)])


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


def _drawn(
    grants: Sequence[GrantBalance], credit: int, amount: Money, *, at: datetime
) -> list[Draw]:
    """Where an amount comes from; raises HoldDeclined."""
    draws = draw(grants, picos=amount.picos, credit_picos=max(0, credit), at=at)
    if draws is None:
        available = _available(grants, credit, at=at)
        raise HoldDeclined(available=Money(available, amount.currency))
    return draws


def _give_back(unit: FundUnit, lease: Lease, size: LeaseSize, *, at: datetime) -> None:
    """Return part of a lease to grants and budgets; the lease keeps the rest."""
    kept, back, freed = lease.less(picos=size.picos, tokens=size.tokens)
    returned = return_lease(lease, back=back, at=at)
    unit.post([returned] if returned else [])
    unit.keep_leases([kept])
    settle_budget_draws(unit, [BudgetUse(draw, 0) for draw in freed], at=at)
