"""What one request counts as against limits, however often it is tried."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from steelyard.access.limits import CountedPlace
from steelyard.access.rate_limit import Allowances, Counted, RequestCounts


@dataclass(slots=True)
class RequestCounting:
    """Counts a request once in its own places, and once in each model that it is tried on.

    `tokens_used` is what the last attempt used; None where nobody knows, and then all that was
    reserved stays counted.
    """

    counts: RequestCounts
    tokens_used: int | None = 0
    _counted: dict[str, Counted] = field(default_factory=dict)

    @property
    def allowances(self) -> Allowances:
        """What was left when the request came."""
        first = next(iter(self._counted.values()), None)
        return first.allowances if first is not None else Allowances()

    async def count(self, model: str, places: Sequence[CountedPlace], *, tokens: int) -> None:
        """Count a try on this model; raises what `RequestCounts.count` raises."""
        if model in self._counted:
            return
        if self._counted:
            places = [place for place in places if place.scope == "model"]
        self._counted[model] = await self.counts.count(places, tokens=tokens)

    def end(self) -> None:
        """It runs no more. Models that were tried before the last one answered nothing."""
        countings = list(self._counted.values())
        for at, counted in enumerate(countings):
            is_of_request = at in {0, len(countings) - 1}
            counted.end(tokens=self.tokens_used if is_of_request else 0)
