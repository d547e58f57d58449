"""What is gathered of requests as they come and go: counts, tokens, money and times.

OpenTelemetry's names where it has one, ours where it is about money. What stands elsewhere (outbox,
leases) is read when somebody asks. Gathering is on the way of every request, so it is numbers in
slots; Prometheus' families are made of them when somebody reads.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from steelyard.errors import Failure
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import Closed
from steelyard.gateway.routing.route_plan import RouteStep
from steelyard.metering.answer_meter import AnswerMeter

# Those that OpenTelemetry advises.
_SECONDS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
    *(5.12, 10.24, 20.48, 40.96, 81.92),
)
_TOKENS: Final = tuple(float(4**power) for power in range(14))
Family = CounterMetricFamily | HistogramMetricFamily


class _Histogram:
    """How often a number was up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, number: float) -> None:
        self._counts[bisect_left(self._bounds, number)] += 1
        self._sum += number

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family.add_metric(labels, buckets, self._sum)


class _OfModel:
    """What is gathered of the attempts on one model."""

    __slots__ = ("duration", "first_token", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens = _Histogram(_TOKENS)
        self.output_tokens = _Histogram(_TOKENS)
        self.duration = _Histogram(_SECONDS)
        # Empty where no answer had output yet.
        self.first_token: _Histogram | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Only the event loop touches it. `in_flight` are the holds of requests that were admitted and
    are not closed."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    in_flight: dict[str, Admitted] = field(default_factory=dict[str, Admitted])
    _outcomes: Counter[str] = field(default_factory=Counter[str])
    _attempts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    _retries: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    _refusals: Counter[str] = field(default_factory=Counter[str])
    _charged: Counter[str] = field(default_factory=Counter[str])
    _models: dict[str, _OfModel] = field(default_factory=dict[str, _OfModel])

    def __post_init__(self) -> None:
        self.registry.register(_Families(self))

    def begin(self, admitted: Admitted) -> None:
        """A request runs: something is held for it."""
        self.in_flight[admitted.hold.id] = admitted

    def end(self, admitted: Admitted) -> None:
        """It does not run any more, however it ended."""
        del self.in_flight[admitted.hold.id]

    def observe(
        self,
        admitted: Admitted,
        closed: Closed,
        meter: AnswerMeter,
        *,
        tokens: tuple[int, int],
        at: datetime,
    ) -> None:
        """An attempt was closed, and its event is durable; it read and wrote so many tokens."""
        model, admitted_at, total = admitted.model, admitted.pinned.at, closed.total
        input_tokens, output_tokens = tokens
        self._attempts[model.upstream, closed.end_cause] += 1
        self._charged[total.currency] += total.picos
        of_model = self._models.get(model.id)
        if of_model is None:
            of_model = self._models[model.id] = _OfModel()
        of_model.input_tokens.observe(input_tokens)
        of_model.output_tokens.observe(output_tokens)
        of_model.duration.observe((at - admitted_at).total_seconds())
        if meter.first_token_at is not None:
            if of_model.first_token is None:
                of_model.first_token = _Histogram(_SECONDS)
            waited = meter.first_token_at - admitted_at
            of_model.first_token.observe(waited.total_seconds())

    def finish(self, closed: Closed | Failure | None) -> None:
        """A request is over; this is its last attempt, or why that could not be recorded."""
        outcome = closed.end_cause if isinstance(closed, Closed) else "event_log_failed"
        self._outcomes[outcome] += 1

    def try_again(self, step: RouteStep) -> None:
        """An attempt failed, and another one goes this way."""
        assert step.again, "the first attempt of a request is no other one"
        self._retries[step.model.name, step.deployment.upstream.name, step.again] += 1

    def refuse(self, code: str) -> None:
        """An error was the answer."""
        self._refusals[code] += 1

    def families(self) -> Iterator[Family]:
        """All of it, as Prometheus reads it."""
        yield _counts(
            "steelyard_requests",
            "Requests that were admitted, by how their last attempt ended.",
            ["outcome"],
            {(outcome,): count for outcome, count in self._outcomes.items()},
        )
        yield _counts(
            "steelyard_attempts",
            "Attempts that were closed, by upstream and end cause.",
            ["upstream", "outcome"],
            self._attempts,
        )
        yield _counts(
            "steelyard_retries",
            "Attempts that were not the first of their request, by where they went.",
            ["model", "upstream", "again"],
            self._retries,
        )
        yield _counts(
            "steelyard_errors",
            "Answers that are errors of ours, by code.",
            ["code"],
            {(code,): count for code, count in self._refusals.items()},
        )
        yield _counts(
            "steelyard_charged_picos",
            "What closed attempts cost.",
            ["currency"],
            {(currency,): picos for currency, picos in self._charged.items()},
        )
        yield from self._histograms()

    def _histograms(self) -> Iterator[Family]:
        of_model = ["gen_ai_request_model"]
        tokens = HistogramMetricFamily(
            "gen_ai_client_token_usage",
            "Charged tokens of each attempt.",
            labels=["gen_ai_token_type", *of_model],
        )
        duration = HistogramMetricFamily(
            "gen_ai_server_request_duration_seconds",
            "From admission until the event is durable.",
            labels=of_model,
        )
        first_token = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds",
            "From admission until the client was handed the first token.",
            labels=of_model,
        )
        for model, gathered in self._models.items():
            gathered.input_tokens.add_to(tokens, ["input", model])
            gathered.output_tokens.add_to(tokens, ["output", model])
            gathered.duration.add_to(duration, [model])
            if gathered.first_token is not None:
                gathered.first_token.add_to(first_token, [model])
        yield from (tokens, duration, first_token)


@dataclass(slots=True, eq=False)
class _Families(Collector):
    """Hands the families to whoever reads the registry."""

    metrics: RequestMetrics

    def collect(self) -> Iterator[Family]:
        return self.metrics.families()


def _counts(
    name: str, meaning: str, labels: Sequence[str], counts: "dict[tuple[str, ...], int]"
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
