"""Holds in memory, in microseconds: what this gateway has leased, and what it grants of it.

Only the event loop touches the wallet, so nothing is locked. How leases come and go is in
`lease_keeper.py`; why this is strict is in ADR 0022.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from msgspec.structs import replace

from steelyard.billing.lease_sizing import LeaseSize
from steelyard.eventlog.attempt_records import PendingEvent
from steelyard.gateway.lease_in_hand import LeaseInHand
from steelyard.gateway.lease_pocket import LeasePocket
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.ledger.lease import Lease
from steelyard.money import Currency, Money

PocketName = tuple[tuple[str, ...], str, Currency]


@dataclass(slots=True)
class LeaseWallet:
    """What is leased to this gateway, key by key."""

    ttl: timedelta
    pockets: dict[PocketName, LeasePocket] = field(default_factory=dict[PocketName, LeasePocket])
    _leases: dict[str, LeaseInHand] = field(default_factory=dict[str, LeaseInHand])

    def grant(self, hold: Hold, scope: HoldScope) -> Hold | None:
        """The hold, granted from a lease; None where no lease covers it."""
        size = LeaseSize(hold.amount.picos, scope.tokens_max)
        pocket = self._pocket(hold, scope)
        lease = pocket.find(size, at=hold.placed_at)
        if lease is None:
            pocket.miss(size, at=hold.placed_at, ttl=self.ttl)
            return None
        lease.hold(hold.id, size)
        return replace(hold, lease_id=lease.lease.id)

    def grow(self, hold: Hold, *, amount: Money, tokens_max: int) -> bool:
        """Make a hold of this wallet larger, if its own lease has so much."""
        lease = self._leases[hold.lease_id or ""]
        return lease.grow(hold.id, LeaseSize(amount.picos, tokens_max))

    def release(self, hold: Hold, used: LeaseSize, *, event: PendingEvent) -> None:
        """An attempt is over. Call it right after its event was appended, before anything is
        awaited: the order of releases is that of the log."""
        if hold.lease_id is not None:
            self._leases[hold.lease_id].release(hold.id, used, event=event)

    def put(self, pocket: LeasePocket, lease: Lease) -> None:
        pocket.put(lease)
        self._leases[lease.id] = pocket.leases[-1]

    def forget(self, pocket: LeasePocket, lease: LeaseInHand) -> None:
        pocket.forget(lease)
        del self._leases[lease.lease.id]

    def find(self, lease_id: str) -> LeaseInHand | None:
        return self._leases.get(lease_id)

    def leases(self) -> Iterator[tuple[LeasePocket, LeaseInHand]]:
        """Everything in hand, as it is now: leases may come and go meanwhile."""
        for pocket in list(self.pockets.values()):
            for lease in list(pocket.leases):
                yield pocket, lease

    def has_leases(self) -> bool:
        return bool(self._leases)

    def _pocket(self, hold: Hold, scope: HoldScope) -> LeasePocket:
        name = scope.ids, hold.payer_id, hold.amount.currency
        pocket = self.pockets.get(name)
        if pocket is None:
            pocket = LeasePocket(scope, hold.payer_id, hold.amount.currency)
            self.pockets[name] = pocket
        return pocket
