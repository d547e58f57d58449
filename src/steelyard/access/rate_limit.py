"""Limits on requests per minute: an exact sliding window per virtual key, in memory."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from steelyard.errors import Refusal

WINDOW_S = 60.0


class RateLimited(Refusal):
    """The virtual key has used up its requests for this minute."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class RequestRateLimit:
    """Admits at most so many requests of a key in any 60 seconds."""

    monotonic: Callable[[], float]
    _admitted: dict[str, deque[float]] = field(default_factory=dict[str, deque[float]])

    def admit(self, key_id: str, *, per_minute: int) -> int:
        """Count one request and return how many remain; raises RateLimited if none does."""
        now = self.monotonic()
        moments = self._admitted.setdefault(key_id, deque())
        while moments and moments[0] <= now - WINDOW_S:
            moments.popleft()
        if len(moments) >= per_minute:
            wait_s = moments[len(moments) - per_minute] + WINDOW_S - now if per_minute else WINDOW_S
            raise RateLimited(
                f"this key may make {per_minute} requests a minute; try again in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        moments.append(now)
        return per_minute - len(moments)
