"""What is set aside for a run as a whole, be it of a pipeline or of a document: one hold for each who
pays, which grows as its requests come.

It is a lease in the books that nobody calls back, kept in this gateway's wallet; each request's hold
is granted from it in memory, and its event spends of it. See ADR 0067.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import anyio
from msgspec.structs import replace

from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.gateway.lease_in_hand import LeaseInHand
from steelyard.gateway.lease_keeper import LeaseKeeper
from steelyard.gateway.lease_pocket import LeasePocket
from steelyard.gateway.lease_wallet import PocketName
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Currency, Money


@dataclass(slots=True)
class _RunPocket(LeasePocket):
    """What is set aside of one payer; it takes a lease when it needs one, and at no other time."""

    # Requests that are short of money at the same time grow the lease once, for all of them.
    waiting: dict[str, LeaseSize] = field(default_factory=dict[str, LeaseSize])
    turn: anyio.Lock = field(default_factory=anyio.Lock)

    def wants_lease(self, **_: object) -> bool:
        return False

    def open_lease(self, *, at: datetime) -> LeaseInHand | None:
        usable = [one for one in self.leases if not one.is_drained and at < one.lease.expires_at]
        return usable[-1] if usable else None


@dataclass(slots=True)
class RunLease:
    """Only the event loop touches it. Whoever makes it ends it."""

    run_id: str
    keeper: LeaseKeeper
    _pockets: dict[PocketName, _RunPocket] = field(default_factory=dict[PocketName, _RunPocket])

    async def grant(self, hold: Hold, scope: HoldScope) -> Hold:
        """The hold, out of what is set aside, grown if need be; raises HoldDeclined or
        BudgetExceeded, which say what there is with what is set aside."""
        size = LeaseSize(hold.amount.picos, scope.tokens_max)
        lease = await self._covering(size, hold.id, hold.payer_id, hold.amount.currency, scope)
        lease.hold(hold.id, size)
        return replace(hold, lease_id=lease.lease.id)

    async def set_aside(self, hold: Hold, scope: HoldScope) -> Hold:
        """Set as much aside as this hold is of, and hold nothing yet; raises as `grant` does."""
        size = LeaseSize(hold.amount.picos, scope.tokens_max)
        await self._covering(size, hold.id, hold.payer_id, hold.amount.currency, scope)
        return hold

    def end(self) -> None:
        """Nothing more is granted: what is left goes back as soon as the last event is written."""
        for pocket in self._pockets.values():
            for lease in pocket.leases:
                lease.is_drained = True
        self.keeper.wake()

    async def _covering(
        self, size: LeaseSize, name: str, payer_id: str, currency: Currency, scope: HoldScope
    ) -> LeaseInHand:
        pocket_name: PocketName = (self.run_id, *scope.ids), payer_id, currency
        pocket = self._pockets.get(pocket_name)
        if pocket is None:
            pocket = self._pockets[pocket_name] = _RunPocket(scope, payer_id, currency)
        found = pocket.find(size, at=self.keeper.clock.now())
        if found is not None:
            return found
        pocket.waiting[name] = size
        try:
            async with pocket.turn:
                # Whoever was before may have grown it for this one as well.
                while (found := pocket.find(size, at=self.keeper.clock.now())) is None:
                    await self._grow(pocket_name, pocket, size)
        finally:
            del pocket.waiting[name]
        return found

    async def _grow(self, name: PocketName, pocket: _RunPocket, size: LeaseSize) -> None:
        """For all who wait, or where that is too much for one of them."""
        lease = pocket.open_lease(at=self.keeper.clock.now())
        for wanted in _sizes(pocket, size):
            try:
                if lease is None or not await self._add(pocket, lease, wanted, hold=size):
                    await self.keeper.reserve(name, pocket, wanted, hold=size, run_id=self.run_id)
                    self._drain(lease)
                return
            except HoldDeclined as declined:
                free = lease.free_picos if lease else 0
                available = Money(declined.available.picos + free, pocket.currency)
                refusal = HoldDeclined(available=available)
            except BudgetExceeded as exceeded:
                refusal = _with_free(exceeded, lease)
            if wanted == size:
                raise refusal

    async def _add(
        self, pocket: _RunPocket, lease: LeaseInHand, wanted: LeaseSize, *, hold: LeaseSize
    ) -> bool:
        return await self.keeper.grow(pocket, lease, _missing(lease, wanted), hold=hold)

    def _drain(self, lease: LeaseInHand | None) -> None:
        """The lease was ended under our hands, by a person."""
        if lease is not None:
            lease.is_drained = True


def _sizes(pocket: _RunPocket, size: LeaseSize) -> Iterator[LeaseSize]:
    waiting = pocket.waiting.values()
    whole = LeaseSize(sum(one.picos for one in waiting), sum(one.tokens for one in waiting))
    if whole != size:
        yield whole
    yield size


def _missing(lease: LeaseInHand, size: LeaseSize) -> LeaseSize:
    tokens = size.tokens - (lease.free_tokens or 0)
    return LeaseSize(max(0, size.picos - lease.free_picos), max(0, tokens))


def _with_free(exceeded: BudgetExceeded, lease: LeaseInHand | None) -> BudgetExceeded:
    free = 0
    if lease is not None:
        free = lease.free_picos if exceeded.unit == "money" else lease.free_tokens or 0
    return BudgetExceeded(str(exceeded), unit=exceeded.unit, left=exceeded.left + free)
