"""The route of one request: the deployments that it is tried on, one after the other.

First the model that was asked for, on another deployment each time; then the models that it falls
back on. How often, rules and the retry budget say. Nothing here waits.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from steelyard.gateway.routing.deployment import Deployment, RoutedModel
from steelyard.gateway.upstreams.base import CircuitOpen, UpstreamUnavailable

# Another attempt on the same deployment, on another one, or on a model that is fallen back on.
TriedAgain = Literal["same", "other", "fallback"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt may be tried again: `is_lasting` says that this deployment will not mend."""

    retry_after_s: float = 0.0
    is_lasting: bool = False


class RouteStep(msgspec.Struct, frozen=True):
    """Where the next attempt goes, and how long it waits before; `again` where it is not the first."""

    model: RoutedModel
    deployment: Deployment
    wait_s: float = 0.0
    again: TriedAgain | None = None


@dataclass(slots=True)
class RoutePlan:
    """Where one request may go; `models` are the one that was asked for and its fallbacks."""

    models: Sequence[RoutedModel]
    paths: Collection[str]
    monotonic: Callable[[], float]
    jitter: Callable[[], float]
    _position: int = 0
    _attempts: int = 0
    _waits: int = 0
    _tried: list[Deployment] = field(default_factory=list)
    _given_up: list[Deployment] = field(default_factory=list)
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_s = self.monotonic()

    def first(self) -> RouteStep:
        """Raises CircuitOpen or UpstreamUnavailable where nothing can be tried."""
        self.models[0].budget.add_request()
        step = self._on_model_from(0)
        if step is None:
            raise self._nothing()
        return step

    def after(self, step: RouteStep, trouble: Trouble) -> RouteStep | None:
        """The next try, or None where it was the last."""
        model = step.model
        if trouble.is_lasting:
            self._given_up.append(step.deployment)
        if self.monotonic() - self._began_s > model.retries.within_s:
            return None
        if self._attempts < model.retries.attempts_max:
            again = self._again(model, trouble)
            if again is not None:
                return again
        return self._on_model_from(self._position + 1, again="fallback")

    def _again(self, model: RoutedModel, trouble: Trouble) -> RouteStep | None:
        """Another try of the same model, at once elsewhere or later at the same place."""
        other = model.choose(self.paths, without=self._tried)
        wait_s, again = 0.0, "other"
        if other is None:
            again = "same"
            other = model.choose(self.paths, without=self._given_up)
            wait_s = self._back_off(model, trouble)
            if wait_s > model.retries.backoff_max_s:
                return None
        if other is None or not model.budget.take():
            return None
        return self._step(model, other, wait_s=wait_s, again=again)

    def _back_off(self, model: RoutedModel, trouble: Trouble) -> float:
        """Twice as long each time, a random part of it, and never before the upstream wants."""
        self._waits += 1
        retries = model.retries
        longest = min(retries.backoff_first_s * 2 ** (self._waits - 1), retries.backoff_max_s)
        return max(longest * (0.5 + self.jitter() / 2), trouble.retry_after_s)

    def _on_model_from(self, position: int, *, again: TriedAgain | None = None) -> RouteStep | None:
        """The first try of the first model that has a deployment ready."""
        for at in range(position, len(self.models)):
            model = self.models[at]
            chosen = model.choose(self.paths, without=self._given_up)
            if chosen is not None:
                self._position, self._attempts = at, 0
                return self._step(model, chosen, again=again)
        return None

    def _step(
        self,
        model: RoutedModel,
        deployment: Deployment,
        *,
        wait_s: float = 0.0,
        again: TriedAgain | None = None,
    ) -> RouteStep:
        self._attempts += 1
        self._tried.append(deployment)
        return RouteStep(model, deployment, wait_s, again)

    def _nothing(self) -> UpstreamUnavailable:
        """Why nothing can be tried: all rest, or nobody knows yet what they serve."""
        model = self.models[0]
        resting = [each.breaker.opens_in_s for each in model.deployments if each.served]
        if not resting:
            return UpstreamUnavailable(f"no server of {model.name} is ready yet; try again")
        return CircuitOpen(
            f"every server of {model.name} has failed several times and rests; try again",
            retry_after_s=min(resting),
        )
