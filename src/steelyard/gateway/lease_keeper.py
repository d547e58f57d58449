"""Keeps the wallet filled: takes leases ahead of need, and returns what others need more.

Everything that waits for the books runs in a thread, one thing after the other; a failure leaves
leases as they are, and the next round goes on.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import structlog

from steelyard.billing.lease_desk import LeaseDesk, LeaseWanted
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.lease_in_hand import LeaseInHand
from steelyard.gateway.lease_pocket import LeasePocket
from steelyard.gateway.lease_wallet import LeaseWallet, PocketName
from steelyard.ids import new_id

log = structlog.get_logger()

T = TypeVar("T")

# How often the books are asked, while there are leases, whether somebody wants them back.
LOOK_EVERY_S: Final = 0.1
# After funds were found thin, and after a lease was recalled, holds are placed in the books.
THIN_REST: Final = timedelta(seconds=1)
RECALLED_REST: Final = timedelta(seconds=5)
# How long an end waits for its last event to be on the disk: in a round, and in the last one.
ROUND_TIMEOUT_S: Final = 0.05
CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class LeaseKeeper:
    """The only one who puts leases into the wallet and takes them out."""

    wallet: LeaseWallet
    desk: LeaseDesk
    outbox: Outbox
    clock: Clock
    # A lease may have been taken that we never heard of.
    _may_have_strays: bool = False
    _wanted: asyncio.Event | None = None
    _asked_at: float = 0.0
    _working: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Leases of runs that the books may know of before we do.
    _reserving: set[str] = field(default_factory=set[str])

    def wake(self) -> None:
        """A hold found no lease: look whether one should be taken."""
        if self._wanted is not None:
            self._wanted.set()

    async def keep(self) -> None:
        """Look after the leases for ever."""
        self._wanted = asyncio.Event()
        while True:
            if not (self.wallet.has_leases() or self._may_have_strays):
                await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.look()
            except Failure as failure:
                log.warning("leases.not_kept", reason=str(failure))
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._wanted.wait()

    async def look(self) -> None:
        """One round: end what is over, give back what is asked for, take what is needed."""
        async with self._working:
            if self._may_have_strays:
                await self._end_strays()
            if self.wallet.has_leases() and anyio.current_time() - self._asked_at >= LOOK_EVERY_S:
                self._asked_at = anyio.current_time()
                await self._give_back_recalled()
            await self._retire_expired()
            await self._take_wanted()

    async def reserve(
        self,
        name: PocketName,
        pocket: LeasePocket,
        size: LeaseSize,
        *,
        hold: LeaseSize,
        run_id: str,
    ) -> None:
        """Take a lease of at least this size for a run; raises HoldDeclined or BudgetExceeded."""
        lease_id = new_id()
        wanted = self._wanted_by(pocket, size, hold=hold)
        self._reserving.add(lease_id)
        try:
            lease = await _in_thread(
                lambda: self.desk.take_for_run(wanted, lease_id=lease_id, run_id=run_id)
            )
        except Failure:
            self._may_have_strays = True
            self.wake()
            raise
        finally:
            self._reserving.discard(lease_id)
        self.wallet.pockets[name] = pocket
        self.wallet.put(pocket, lease)

    async def grow(
        self, pocket: LeasePocket, lease: LeaseInHand, size: LeaseSize, *, hold: LeaseSize
    ) -> bool:
        """Add at least so much to a lease of a run, or say that it is over; raises HoldDeclined or
        BudgetExceeded."""
        wanted = self._wanted_by(pocket, size, hold=hold)
        more = await _in_thread(lambda: self.desk.grow(lease.lease.id, wanted))
        if more is not None:
            lease.add(more)
        return more is not None

    async def give_back(self, lease_ids: list[str]) -> None:
        """Return these leases now, as far as they are ours and free."""
        async with self._working:
            await self._give_back(lease_ids)

    async def close(self) -> None:
        """Return everything; what cannot be returned is found by the next life of this gateway."""
        async with self._working:
            for pocket, lease in self.wallet.leases():
                lease.is_drained = True
                try:
                    await self._end(pocket, lease, timeout_s=CLOSE_TIMEOUT_S)
                except Failure as failure:
                    log.warning("leases.left_for_recovery", reason=str(failure))
                    return

    async def _give_back_recalled(self) -> None:
        recalled = await _in_thread(lambda: self.desk.recalled(source=self.outbox.source))
        await self._give_back(list(recalled))

    async def _give_back(self, lease_ids: list[str]) -> None:
        at = self.clock.now()
        wanted = set(lease_ids)
        for pocket, lease in self.wallet.leases():
            if lease.lease.id in wanted:
                pocket.rest(until=at + RECALLED_REST)
                await self._return_free(lease, at=at)
                await self._end(pocket, lease)

    async def _retire_expired(self) -> None:
        at = self.clock.now()
        for pocket, lease in self.wallet.leases():
            is_expired = at >= lease.lease.expires_at
            if is_expired and not lease.is_drained:
                pocket.learn(lease)
                lease.is_drained = True
            if lease.is_drained:
                await self._retire(pocket, lease, at=at)
        for name, pocket in list(self.wallet.pockets.items()):
            if pocket.is_idle(at=at, ttl=self.wallet.ttl):
                del self.wallet.pockets[name]

    async def _retire(self, pocket: LeasePocket, lease: LeaseInHand, *, at: datetime) -> None:
        """What is free goes back while answers are still running, the rest with the end."""
        if lease.open_holds:
            await self._return_free(lease, at=at)
        else:
            await self._end(pocket, lease)

    async def _return_free(self, lease: LeaseInHand, *, at: datetime) -> None:
        free = lease.drain()
        if lease.is_told and free == LeaseSize(0, 0):
            return
        # Whether a call that fails was heard is not known, so the same is never returned again.
        was_unsure, lease.is_unsure = lease.is_unsure, True
        await _in_thread(lambda: self.desk.give_back(lease.lease.id, free, at=at))
        lease.is_unsure, lease.is_told = was_unsure, True

    async def _end(
        self, pocket: LeasePocket, lease: LeaseInHand, *, timeout_s: float = ROUND_TIMEOUT_S
    ) -> None:
        """Once nothing is held any more, and its last event is on the disk."""
        if lease.open_holds:
            return
        event = lease.last_event
        if event is not None:
            try:
                with anyio.fail_after(timeout_s):
                    await self.outbox.durable(event)
            except (EventLogUnavailable, TimeoutError):
                return
        last_event_id = event.draft.id if event else None
        at = self.clock.now()
        await _in_thread(lambda: self.desk.end(lease.lease.id, last_event_id=last_event_id, at=at))
        self.wallet.forget(pocket, lease)

    async def _take_wanted(self) -> None:
        for pocket in list(self.wallet.pockets.values()):
            at = self.clock.now()
            if pocket.wants_lease(at=at, ttl=self.wallet.ttl):
                await self._take(pocket, at=at)

    async def _take(self, pocket: LeasePocket, *, at: datetime) -> None:
        wanted = self._wanted_by(pocket, pocket.wanted(), hold=pocket.typical)
        self._may_have_strays = True
        lease = await _in_thread(lambda: self.desk.take(wanted))
        self._may_have_strays = False
        if lease is None:
            pocket.rest(until=at + THIN_REST)
        else:
            self.wallet.put(pocket, lease)

    def _wanted_by(self, pocket: LeasePocket, size: LeaseSize, *, hold: LeaseSize) -> LeaseWanted:
        return LeaseWanted(
            payer_id=pocket.payer_id,
            currency=pocket.currency,
            scope=pocket.scope,
            source=self.outbox.source,
            hold=hold,
            size=size,
            at=self.clock.now(),
        )

    async def _end_strays(self) -> None:
        """A lease of ours that is not in the wallet was granted while the books were going away."""
        source = self.outbox.source
        # A reservation that fails meanwhile may leave another.
        self._may_have_strays = False
        try:
            for lease in await _in_thread(lambda: self.desk.left_by(source_prefix=source)):
                is_ours = lease.id in self._reserving or self.wallet.find(lease.id) is not None
                if lease.status != "ended" and not is_ours:
                    log.info("lease.stray_ended", lease_id=lease.id)
                    await _in_thread(partial(self._end_stray, lease.id))
        except Failure:
            self._may_have_strays = True
            raise

    def _end_stray(self, lease_id: str) -> None:
        self.desk.end(lease_id, last_event_id=None, at=self.clock.now())


async def _in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call)
