"""Holds for requests: from a lease in memory where there is one, else from the books."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import anyio
import anyio.to_thread
from msgspec.structs import replace

from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.fund_books import FundBooks
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.hold_desk import HoldDesk
from steelyard.billing.lease_desk import LeaseDesk
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.clock import Clock
from steelyard.eventlog.attempt_records import EventDraft, PendingEvent
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.event_draft import held_by, read_terms, unserved_draft
from steelyard.gateway.lease_keeper import LeaseKeeper
from steelyard.gateway.lease_wallet import LeaseWallet
from steelyard.gateway.run_lease import RunLease
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.usage import Usage, tokens_within
from steelyard.money import Money
from steelyard.timestamp import write_timestamp

# How long a request that is declined waits for leases of its payer to come back.
RECALL_WAIT_S: Final = 1.0
RECALL_LOOK_S: Final = 0.03


@dataclass(slots=True)
class Holding:
    """Holds money before the work, and lets go of it with the event that closes the attempt."""

    hold_desk: HoldDesk
    lease_desk: LeaseDesk
    wallet: LeaseWallet
    keeper: LeaseKeeper
    outbox: Outbox
    clock: Clock
    # What was granted and is not released, wherever it was granted from.
    open_holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    # Requests that are declined together ask once.
    _recalling: dict[str, anyio.Event] = field(default_factory=dict[str, anyio.Event])

    @classmethod
    def of(cls, books: FundBooks, outbox: Outbox, clock: Clock, *, ttl_s: float) -> "Holding":
        """Holding over these books, with leases that live so long; zero: without leases."""
        ttl = timedelta(seconds=ttl_s)
        desk, wallet = LeaseDesk(books, ttl=ttl), LeaseWallet(ttl)
        keeper = LeaseKeeper(wallet, desk, outbox, clock)
        return cls(HoldDesk(books), desk, wallet, keeper, outbox, clock)

    async def place(
        self,
        hold: Hold,
        scope: HoldScope,
        *,
        new_id: Callable[[], str] = new_id,
        run_lease: RunLease | None = None,
    ) -> Hold:
        """The hold, granted, out of what is set aside for its run where something is.

        Raises HoldDeclined or BudgetExceeded only when nothing is out on lease that would cover it.
        Granted late, it has another id, the newest of `new_id`.
        """
        if run_lease is not None:
            granted = await self._grant(hold, scope, new_id, run_lease.grant)
        elif (granted := self.wallet.grant(hold, scope)) is None:
            self.keeper.wake()
            granted = await self._grant(hold, scope, new_id, self._place_in_books)
        self.open_holds[granted.id] = granted
        return granted

    async def set_aside(self, hold: Hold, scope: HoldScope, *, run_lease: RunLease) -> None:
        """Set what this hold is of aside for a run, before its first request; raises as `place`."""
        await self._grant(hold, scope, new_id, run_lease.set_aside)

    def lease_for(self, run_id: str) -> RunLease:
        """What is to be set aside for a run as a whole; nothing yet."""
        return RunLease(run_id, self.keeper)

    async def _grant(
        self,
        hold: Hold,
        scope: HoldScope,
        new_id: Callable[[], str],
        grant: Callable[[Hold, HoldScope], Awaitable[Hold]],
    ) -> Hold:
        try:
            return await grant(hold, scope)
        except HoldDeclined:
            owner_id = hold.payer_id
        except BudgetExceeded:
            owner_id = scope.organisation_id
        await self._recall(owner_id)
        # A hold that was declined stays declined under its id.
        again = replace(hold, id=new_id(), placed_at=self.clock.now())
        return await grant(again, scope)

    async def grow(self, hold: Hold, *, amount: Money, tokens_max: int) -> Money | None:
        """Hold so much in all; what is held then. None where the hold's lease has too little;
        raises as the hold desk does."""
        if hold.lease_id is not None:
            if not self.wallet.grow(hold, amount=amount, tokens_max=tokens_max):
                return None
        else:
            at = self.clock.now()
            growing = self.hold_desk.grow(hold.id, amount=amount, tokens_max=tokens_max, at=at)
            # A client that leaves meanwhile must not take back what the hold desk is at work on.
            amount = (await asyncio.shield(asyncio.wrap_future(growing))).amount
        if hold.id in self.open_holds:
            self.open_holds[hold.id] = replace(hold, amount=amount)
        return amount

    def release(self, hold: Hold, draft: EventDraft, usage: Usage, charged: Money) -> PendingEvent:
        """Append the event of an attempt, and make free what its hold did not need."""
        event = self.outbox.append(draft)
        tokens = tokens_within(usage.counts)
        self.wallet.release(hold, LeaseSize(charged.picos, tokens), event=event)
        self.open_holds.pop(hold.id, None)
        return event

    async def close(self) -> None:
        """Return what is leased, once no request runs any more."""
        await self.keeper.close()
        await anyio.to_thread.run_sync(self.hold_desk.close)

    async def _place_in_books(self, hold: Hold, scope: HoldScope) -> Hold:
        placing = self.hold_desk.place(hold, scope)
        try:
            return await asyncio.shield(asyncio.wrap_future(placing))
        except asyncio.CancelledError:
            # Nobody waits any more, but the hold may still be granted: then it is closed at once.
            placing.add_done_callback(lambda placed: self._abandon(hold, placed))
            raise

    def _abandon(self, hold: Hold, placed: "Future[Hold]") -> None:
        if placed.exception() is None:
            ended_at = write_timestamp(self.clock.now())
            opened = hold.opened.encode()
            terms = read_terms(opened)
            draft = unserved_draft(
                held_by(hold), opened, terms, end_cause="gateway_stopped", ended_at=ended_at
            )
            self.outbox.append(draft)

    async def _recall(self, owner_id: str) -> None:
        """Ask for every lease of the owner back, ours at once, and wait a moment for the others."""
        if (asked := self._recalling.get(owner_id)) is not None:
            await asked.wait()
            return
        done = self._recalling[owner_id] = anyio.Event()
        try:
            in_hand = await anyio.to_thread.run_sync(lambda: self.lease_desk.recall(owner_id))
            await self.keeper.give_back(list(in_hand))
            with anyio.move_on_after(RECALL_WAIT_S):
                while in_hand:
                    await anyio.sleep(RECALL_LOOK_S)
                    in_hand = await anyio.to_thread.run_sync(
                        lambda: self.lease_desk.in_hand(owner_id)
                    )
        finally:
            del self._recalling[owner_id]
            done.set()
