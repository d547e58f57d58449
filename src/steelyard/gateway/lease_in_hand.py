"""One lease in the memory of its gateway: what is free of it, and what is held."""

from dataclasses import dataclass, field
from datetime import datetime

from steelyard.billing.lease_sizing import LeaseSize
from steelyard.eventlog.attempt_records import PendingEvent
from steelyard.ledger.lease import Lease


@dataclass(slots=True)
class LeaseInHand:
    """A lease, and the holds that were granted from it; only the event loop touches it.

    `free_tokens` is None where no budget counts tokens. `lowest_picos` is the least that was ever
    free: what of the lease was not needed.
    """

    lease: Lease
    free_picos: int
    free_tokens: int | None
    lowest_picos: int
    open_holds: dict[str, LeaseSize] = field(default_factory=dict[str, LeaseSize])
    granted_count: int = 0
    last_event: PendingEvent | None = None
    is_drained: bool = False
    # The books know that it is drained, so that nobody waits for it.
    is_told: bool = False
    # What was to go back may have gone or not: nothing more is returned before the end.
    is_unsure: bool = False

    @classmethod
    def of(cls, lease: Lease) -> "LeaseInHand":
        picos = lease.amount.picos
        return cls(lease, free_picos=picos, free_tokens=lease.tokens, lowest_picos=picos)

    def covers(self, size: LeaseSize, *, at: datetime) -> bool:
        return not self.is_drained and self._has(size) and at < self.lease.expires_at

    def hold(self, hold_id: str, size: LeaseSize) -> None:
        assert hold_id not in self.open_holds, f"{hold_id} is held already"
        self.open_holds[hold_id] = size
        self.granted_count += 1
        self._take(size)

    def grow(self, hold_id: str, size: LeaseSize) -> bool:
        """Whether the open hold is of so much in all from now on: there may be too little."""
        held = self.open_holds[hold_id]
        extra = LeaseSize(size.picos - held.picos, size.tokens - held.tokens)
        if self.is_drained or not self._has(extra):
            return False
        self.open_holds[hold_id] = size
        self._take(extra)
        return True

    def add(self, more: LeaseSize) -> None:
        """The books have added to the lease."""
        self.free_picos += more.picos
        if self.free_tokens is not None:
            self.free_tokens += more.tokens

    def release(self, hold_id: str, used: LeaseSize, *, event: PendingEvent) -> None:
        """What the attempt did not use can be granted again.

        Money never more than was held, since its event takes no more; tokens may be more, since
        budgets count all that were used.
        """
        held = self.open_holds.pop(hold_id)
        self.last_event = event
        self.free_picos += max(0, held.picos - used.picos)
        if self.free_tokens is not None:
            self.free_tokens += held.tokens - used.tokens

    def drain(self) -> LeaseSize:
        """Grant nothing any more; what is free, and now goes back."""
        self.is_drained = True
        if self.is_unsure:
            return LeaseSize(0, 0)
        free = LeaseSize(self.free_picos, max(0, self.free_tokens or 0))
        self.free_picos = 0
        if self.free_tokens is not None:
            self.free_tokens -= free.tokens
        return free

    def _has(self, size: LeaseSize) -> bool:
        has_tokens = self.free_tokens is None or self.free_tokens >= size.tokens
        return has_tokens and self.free_picos >= size.picos

    def _take(self, size: LeaseSize) -> None:
        self.free_picos -= size.picos
        self.lowest_picos = min(self.lowest_picos, self.free_picos)
        if self.free_tokens is not None:
            self.free_tokens -= size.tokens
        assert self.free_picos >= 0, f"lease {self.lease.id} is over-granted"
