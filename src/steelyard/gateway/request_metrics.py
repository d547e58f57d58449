"""What is gathered of requests as they come and go: counts, tokens, money and times.

OpenTelemetry's names where it has one, ours where it is about money. What stands elsewhere (outbox,
leases) is read when somebody asks.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from steelyard.errors import Failure
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import Closed
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.timestamp import read_timestamp

# Those that OpenTelemetry advises.
_SECONDS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
    *(5.12, 10.24, 20.48, 40.96, 81.92),
)
_TOKENS: Final = tuple(4**power for power in range(14))


@dataclass(slots=True)
class RequestMetrics:
    """Only the event loop touches it. `in_flight` are the holds of requests that were admitted and
    are not closed."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    in_flight: dict[str, Admitted] = field(default_factory=dict[str, Admitted])
    _outcomes: Counter = field(init=False)
    _attempts: Counter = field(init=False)
    _refusals: Counter = field(init=False)
    _charged: Counter = field(init=False)
    _tokens: Histogram = field(init=False)
    _duration: Histogram = field(init=False)
    _first_token: Histogram = field(init=False)

    def __post_init__(self) -> None:
        of_model = ["gen_ai_request_model"]
        self._outcomes = Counter(
            "steelyard_requests",
            "Requests that were admitted, by how their last attempt ended.",
            ["outcome"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "steelyard_attempts",
            "Attempts that were closed, by upstream and end cause.",
            ["upstream", "outcome"],
            registry=self.registry,
        )
        self._refusals = Counter(
            "steelyard_errors",
            "Answers that are errors of ours, by code.",
            ["code"],
            registry=self.registry,
        )
        self._charged = Counter(
            "steelyard_charged_picos",
            "What closed attempts cost.",
            ["currency"],
            registry=self.registry,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Charged tokens of each attempt.",
            ["gen_ai_token_type", *of_model],
            registry=self.registry,
            buckets=_TOKENS,
        )
        self._duration = self._seconds(
            "gen_ai_server_request_duration_seconds", "From admission until the event is durable."
        )
        self._first_token = self._seconds(
            "gen_ai_server_time_to_first_token_seconds",
            "From admission until the client was handed the first token.",
        )

    def begin(self, admitted: Admitted) -> None:
        """A request runs: something is held for it."""
        self.in_flight[admitted.hold.id] = admitted

    def end(self, admitted: Admitted) -> None:
        """It does not run any more, however it ended."""
        del self.in_flight[admitted.hold.id]

    def observe(
        self, admitted: Admitted, closed: Closed, meter: AnswerMeter, *, at: datetime
    ) -> None:
        """An attempt was closed, and its event is durable."""
        model = admitted.model.id
        admitted_at = read_timestamp(admitted.opened.admitted_at)
        self._attempts.labels(admitted.model.upstream, closed.end_cause).inc()
        self._charged.labels(closed.total.currency).inc(closed.total.picos)
        self._tokens.labels("input", model).observe(closed.usage.input_tokens)
        self._tokens.labels("output", model).observe(closed.usage.output_tokens)
        self._duration.labels(model).observe((at - admitted_at).total_seconds())
        if meter.first_token_at is not None:
            waited = meter.first_token_at - admitted_at
            self._first_token.labels(model).observe(waited.total_seconds())

    def finish(self, closed: Closed | Failure | None) -> None:
        """A request is over; this is its last attempt, or why that could not be recorded."""
        self._outcomes.labels(
            closed.end_cause if isinstance(closed, Closed) else "event_log_failed"
        ).inc()

    def refuse(self, code: str) -> None:
        """An error was the answer."""
        self._refusals.labels(code).inc()

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return Histogram(
            name, meaning, ["gen_ai_request_model"], registry=self.registry, buckets=_SECONDS
        )
