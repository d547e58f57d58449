"""Deployments: a model on one upstream, and the choice among those of one model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from steelyard.gateway.routing.breaker import CircuitBreaker
from steelyard.gateway.routing.retry_budget import RetryBudget
from steelyard.gateway.routing.rules import Choice, RetryRules
from steelyard.gateway.upstreams.base import ServedModel, Upstream


@dataclass(slots=True, eq=False)
class Deployment:
    """A model on one upstream, and how it is doing.

    `served` is None until it is known what the model takes. `turn` is its place in the smooth
    weighted round: it grows by the weight, and falls by all weights when its turn has come.
    """

    upstream: Upstream
    upstream_model: str
    weight: int
    breaker: CircuitBreaker
    served: ServedModel | None = None
    is_up: bool = True
    open_count: int = 0
    turn: int = 0

    @property
    def is_ready(self) -> bool:
        return self.served is not None and self.breaker.allows

    @property
    def paths(self) -> frozenset[str]:
        """Where it takes work: the model may do less than its upstream does."""
        own = self.served.paths if self.served is not None else None
        return own or self.upstream.habits.paths

    def begin(self) -> None:
        """An attempt on it begins."""
        self.breaker.begin()
        self.open_count += 1

    def end(self) -> None:
        self.open_count -= 1


@dataclass(slots=True, eq=False)
class RoutedModel:
    """A model under the name that callers and prices know, with its deployments."""

    name: str
    deployments: Sequence[Deployment]
    retries: RetryRules
    choice: Choice = "weighted"
    fallbacks: Sequence[str] = ()
    budget: RetryBudget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = RetryBudget(self.retries)

    @property
    def served(self) -> ServedModel | None:
        """The model as its first known deployment serves it."""
        return next((each.served for each in self.deployments if each.served), None)

    def takes(self, paths: Collection[str]) -> bool:
        """Whether any deployment takes work at one of these paths."""
        for each in self.deployments:  # noqa: SIM110  # A generator takes longer.
            if not each.paths.isdisjoint(paths):
                return True
        return False

    def choose(
        self, paths: Collection[str], *, without: Collection[Deployment]
    ) -> Deployment | None:
        """The deployment whose turn it is, of those that are ready and take one of these paths.

        One that did not answer when it was last looked at has its turn only after the others.
        """
        ready = [
            each
            for each in self.deployments
            if each.is_ready and each not in without and not each.paths.isdisjoint(paths)
        ]
        if len(ready) <= 1:
            return ready[0] if ready else None
        ready = [each for each in ready if each.is_up] or ready
        if self.choice == "least_busy":
            least = min((each.open_count + 1) / each.weight for each in ready)
            ready = [each for each in ready if (each.open_count + 1) / each.weight == least]
        return _take_turn(ready)


def _take_turn(ready: Sequence[Deployment]) -> Deployment:
    for each in ready:
        each.turn += each.weight
    chosen = max(ready, key=lambda each: each.turn)
    chosen.turn -= sum(each.weight for each in ready)
    return chosen
