"""The circuit breaker: a deployment that failed several times in a row rests for a while."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from steelyard.gateway.routing.rules import BreakerRules

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(slots=True)
class CircuitBreaker:
    """Closed while all is well; open for a time after failures; then one request tries it out.

    Each time that the trial fails it stays open for twice as long, up to a maximum.
    """

    rules: BreakerRules
    monotonic: Callable[[], float]
    # How often it opened, or stayed open after a trial.
    openings: int = 0
    _failures: int = 0
    _open_until: float | None = None
    _open_s: float = 0.0
    _has_trial: bool = False

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return "closed"
        return "open" if self.monotonic() < self._open_until else "half_open"

    @property
    def allows(self) -> bool:
        """Whether a request may go through now."""
        if self._open_until is None:
            return True
        return self.monotonic() >= self._open_until and not self._has_trial

    @property
    def opens_in_s(self) -> float:
        """How long until one may be tried."""
        return max(0.0, (self._open_until or 0.0) - self.monotonic()) if self._open_until else 0.0

    def begin(self) -> None:
        """A request goes through; of a half-open one it is the trial."""
        if self._open_until is not None:
            self._has_trial = True

    def succeed(self) -> None:
        self._failures, self._open_until, self._open_s = 0, None, 0.0
        self._has_trial = False

    def fail(self) -> None:
        self._failures += 1
        was_trial, self._has_trial = self._has_trial, False
        if not self.rules.failures or (self._failures < self.rules.failures and not was_trial):
            return
        if self._open_until is not None and not was_trial:
            # A request of before: what it says is known already.
            return
        self._open_s = min(self._open_s * 2 or self.rules.open_s, self.rules.open_max_s)
        self._open_until = self.monotonic() + self._open_s
        self.openings += 1

    def forget(self) -> None:
        """A request ended in a way that says nothing of the server."""
        self._has_trial = False
