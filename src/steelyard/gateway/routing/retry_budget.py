"""The retry budget: retries are a share of the requests, so that they never multiply an outage."""

from dataclasses import dataclass, field

from steelyard.gateway.routing.rules import RetryRules


@dataclass(slots=True)
class RetryBudget:
    """Each request adds its share, each retry takes one, and no more than a burst is saved up."""

    rules: RetryRules
    _left: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = float(self.rules.budget_burst)

    def add_request(self) -> None:
        share = self.rules.budget_percent / 100
        self._left = min(self._left + share, float(self.rules.budget_burst))

    def take(self) -> bool:
        """Whether there is room for a retry; it is taken."""
        # A sum of shares may miss one by the last bit of a float.
        if self._left < 1 - 1e-9:
            return False
        self._left -= 1
        return True
