"""One invariant under examination: what was compared, and every difference that was found."""

from collections.abc import Callable
from dataclasses import dataclass, field

DIFFERENCES_SHOWN_MAX = 20


@dataclass(slots=True)
class Check:
    """One invariant: what was compared, how often, and every difference that was found."""

    invariant: str
    claim: str
    compared: int = 0
    differences: list[str] = field(default_factory=list[str])
    difference_count: int = 0

    @property
    def holds(self) -> bool:
        return self.difference_count == 0

    def expect(self, is_true: bool, difference: Callable[[], str]) -> None:
        """Count a comparison; the difference is put into words only where there is one."""
        self.compared += 1
        if is_true:
            return
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_SHOWN_MAX:
            self.differences.append(difference())
