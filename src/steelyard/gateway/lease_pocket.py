"""The leases that one gateway has for one key, and how many holds the next should be for."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from steelyard.billing.lease_sizing import LeaseSize
from steelyard.gateway.lease_in_hand import LeaseInHand
from steelyard.ledger.hold import HoldScope
from steelyard.ledger.lease import Lease
from steelyard.money import Currency

# A key that asks so seldom costs less as single holds in the books.
MISSES_MIN: Final = 2
HOLDS_FIRST: Final = 32
HOLDS_MIN: Final = 8
HOLDS_MAX: Final = 4096
# A lease that nearly expires is renewed before, if it was used at least so often.
RENEWING_GRANTS_MIN: Final = 4
RENEWING_PART: Final = 4


@dataclass(slots=True)
class LeasePocket:
    """Everything of one key and one payer; a lease is used until it has too little, then the oldest
    that has enough."""

    scope: HoldScope
    payer_id: str
    currency: Currency
    leases: list[LeaseInHand] = field(default_factory=list[LeaseInHand])
    # The one that was used last.
    current: LeaseInHand | None = None
    # A hold like those that come: the largest of late.
    typical: LeaseSize = field(default_factory=lambda: LeaseSize(0, 0))
    holds_wanted: int = HOLDS_FIRST
    missed: int = 0
    missed_at: datetime | None = None
    # No lease is asked for until then: the funds are thin, or were wanted elsewhere.
    rests_until: datetime | None = None

    def find(self, size: LeaseSize, *, at: datetime) -> LeaseInHand | None:
        """A lease that covers so much, if one does."""
        current = self.current
        if current is not None and current.covers(size, at=at):
            return current
        self.current = next((one for one in self.leases if one.covers(size, at=at)), None)
        return self.current

    def forget(self, lease: LeaseInHand) -> None:
        """It is not in hand any more."""
        self.leases.remove(lease)
        if self.current is lease:
            self.current = None

    def miss(self, size: LeaseSize, *, at: datetime, ttl: timedelta) -> None:
        """No lease covered a hold; one miss after a long while counts as the first."""
        is_late = self.missed_at is None or at - self.missed_at > ttl
        self.missed = 1 if is_late else self.missed + 1
        self.missed_at = at
        self.typical = LeaseSize(
            max(size.picos, self.typical.picos * 7 // 8),
            max(size.tokens, self.typical.tokens * 7 // 8),
        )

    def wants_lease(self, *, at: datetime, ttl: timedelta) -> bool:
        is_resting = self.rests_until is not None and at < self.rests_until
        if is_resting or not ttl:
            return False
        return self.missed >= MISSES_MIN or self._is_renewed(at=at, ttl=ttl)

    def wanted(self) -> LeaseSize:
        """How large the next lease should be."""
        return LeaseSize(
            self.typical.picos * self.holds_wanted, self.typical.tokens * self.holds_wanted
        )

    def put(self, lease: Lease) -> None:
        """A lease was granted; one that had to be taken before the last was over says: larger."""
        if self.missed >= MISSES_MIN and self._usable(lease.granted_at):
            self.holds_wanted = min(HOLDS_MAX, self.holds_wanted * 2)
        self.missed = 0
        self.leases.append(LeaseInHand.of(lease))

    def rest(self, *, until: datetime) -> None:
        self.missed = 0
        self.rests_until = until

    def learn(self, lease: LeaseInHand) -> None:
        """A lease has expired: one that was not half needed says: smaller."""
        if lease.lowest_picos * 2 > lease.lease.amount.picos:
            self.holds_wanted = max(HOLDS_MIN, self.holds_wanted // 2)

    def is_idle(self, *, at: datetime, ttl: timedelta) -> bool:
        missed_lately = self.missed_at is not None and at - self.missed_at <= ttl
        return not self.leases and not missed_lately

    def _is_renewed(self, *, at: datetime, ttl: timedelta) -> bool:
        usable = self._usable(at)
        if not usable:
            return False
        newest = usable[-1]
        is_ending = newest.lease.expires_at - at < ttl / RENEWING_PART
        return is_ending and newest.granted_count >= RENEWING_GRANTS_MIN

    def _usable(self, at: datetime) -> list[LeaseInHand]:
        return [one for one in self.leases if not one.is_drained and at < one.lease.expires_at]
