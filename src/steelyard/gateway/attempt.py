"""One attempt, from the hold to its usage event: relay, and close whatever happens."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import anyio
import structlog

from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admission, Admitted
from steelyard.gateway.answer_cache import WHOLE
from steelyard.gateway.closing import Closed, Closing
from steelyard.gateway.disconnecting import HeldBackClient, StoppedByLeaving
from steelyard.gateway.recent_usage import RecentUsage
from steelyard.gateway.relay import (
    Client,
    ClientLeft,
    UpstreamRefused,
    relay_stream,
    relay_whole,
)
from steelyard.gateway.request_metrics import RequestMetrics
from steelyard.gateway.routing.deployment import Deployment
from steelyard.gateway.routing.route_plan import Trouble
from steelyard.gateway.served_log import ServedLine, ServedLog
from steelyard.gateway.upstream_audit import UpstreamAudit
from steelyard.gateway.upstreams.base import (
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamUnavailable,
)
from steelyard.gateway.workloads.answer import Answer
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage_event import EndCause

log = structlog.get_logger()

# Statuses that say something of the server and not of the request; those of the second kind do not
# change while one waits.
RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
LASTING: Final = frozenset({404})
LEFT: Final = frozenset[EndCause](("client_left", "client_left_before_first_token"))


@dataclass(frozen=True, slots=True)
class Gateway:
    """What serving needs."""

    admission: Admission
    outbox: Outbox
    clock: Clock
    audit: UpstreamAudit | None = None
    recent: RecentUsage = field(default_factory=RecentUsage)
    requests: RequestMetrics = field(default_factory=RequestMetrics)
    served: ServedLog = field(default_factory=ServedLog)


@dataclass(slots=True)
class Attempt:
    """An attempt, and how it ended; `closed` is None until it has. `headers` are those of its
    answer."""

    admitted: Admitted
    answer: Answer
    meter: AnswerMeter
    number: int
    headers: dict[str, str]
    refused: UpstreamRefused | None = None
    failure: Failure | None = None
    is_over: bool = False
    has_started: bool = False
    closed: Closed | EventLogUnavailable | None = None

    @property
    def has_left(self) -> bool:
        """Whether the client left before the end, so that nobody waits for it."""
        return self.meter.is_drained or (
            isinstance(self.closed, Closed) and self.closed.end_cause in LEFT
        )

    def trouble(self) -> Trouble | None:
        """What it failed of, where another may take its place: the client has seen nothing."""
        if (
            self.has_started
            or self.meter.is_drained
            or isinstance(self.closed, EventLogUnavailable)
        ):
            return None
        if self.refused is not None:
            status = self.refused.answer.status
            if status not in RETRIED | LASTING and not 300 <= status < 400:
                return None
            after_s = _seconds(self.refused.answer.retry_after)
            return Trouble(retry_after_s=after_s, is_lasting=status not in RETRIED)
        if isinstance(self.failure, UpstreamUnavailable | UpstreamFailed):
            return Trouble(is_lasting=isinstance(self.failure, UpstreamKeyRefused))
        return None

    def end_cause(self) -> EndCause:
        meter = self.meter
        has_output = meter.delivered.has_output
        if self.admitted.cache.is_hit and not isinstance(self.failure, EventLogUnavailable):
            return "cache_hit"
        if meter.is_growth_denied:
            return "hold_growth_denied"
        if meter.is_drained:
            return "client_left" if has_output else "client_left_before_first_token"
        if isinstance(self.failure, EventLogUnavailable):
            return "event_log_failed"
        if meter.is_complete:
            if meter.reported is None:
                return "usage_missing"
            return "stopped_by_limit" if meter.finish_reason == "length" else "completed"
        if not self.is_over:
            return "gateway_stopped"
        if self.refused:
            return "upstream_refused"
        if self.failure:
            return "upstream_failed" if has_output else "upstream_failed_before_first_token"
        return "client_left" if has_output else "client_left_before_first_token"


async def run_attempt(
    gateway: Gateway,
    admitted: Admitted,
    client: Client,
    deployment: Deployment,
    *,
    headers: dict[str, str],
    number: int,
) -> Attempt:
    """Relay an answer and close the attempt; nothing of its end is told to the client yet."""
    is_audited = gateway.audit is not None and gateway.audit.takes(admitted)
    meter = AnswerMeter(is_kept=is_audited)
    attempt = Attempt(admitted, admitted.way.open_answer(), meter, number, headers)
    deployment.begin()
    gateway.requests.begin(admitted)
    try:
        await _relay_until_client_leaves(gateway, attempt, client)
        attempt.is_over = True
    finally:
        deployment.end()
        _tell_breaker(attempt, deployment)
        if not admitted.cache.is_hit:
            admitted.counting.tokens_used = meter.tokens_used
        try:
            await _close(gateway, attempt)
        finally:
            gateway.requests.end(admitted)
    return attempt


async def _relay_until_client_leaves(gateway: Gateway, attempt: Attempt, client: Client) -> None:
    """Relay; a client that leaves cancels the work upstream."""
    admitted, answer, meter = attempt.admitted, attempt.answer, attempt.meter
    held_back = HeldBackClient(client, admitted, meter, gateway.outbox, attempt.headers)
    with StoppedByLeaving(held_back):
        try:
            if admitted.asked.is_streamed:
                await relay_stream(admitted, answer, meter, held_back, now=gateway.clock.now)
                await held_back.start()
            else:
                await relay_whole(admitted, answer, meter, now=gateway.clock.now)
        except ClientLeft:
            log.info("client.left", request_id=admitted.opened.request_id)
        except UpstreamRefused as refused:
            attempt.refused = refused
        except Failure as failure:
            attempt.failure = failure
        finally:
            attempt.has_started = held_back.has_started


async def _close(gateway: Gateway, attempt: Attempt) -> None:
    """Record how the attempt ended; a disk that fails is an answer too. The client may be gone and
    the server stopping: the attempt is closed all the same."""
    admitted, meter = attempt.admitted, attempt.meter
    end_cause, at = attempt.end_cause(), gateway.clock.now()
    closing = Closing(admitted, meter, end_cause, at, gateway.admission.holding)
    try:
        if admitted.cache.making is not None:
            with anyio.CancelScope(shield=True):
                await admitted.cache.end(is_whole=end_cause in WHOLE)
    finally:
        try:
            await closing.durable()
        finally:
            closed = attempt.closed = closing.closed
            if isinstance(closed, Closed):
                _note(gateway, attempt, closed)


def _note(gateway: Gateway, attempt: Attempt, closed: Closed) -> None:
    admitted, meter = attempt.admitted, attempt.meter
    gateway.recent.add(admitted, closed)
    at, tokens = gateway.clock.now(), (closed.usage.input_tokens, closed.usage.output_tokens)
    gateway.requests.observe(admitted, closed, meter, tokens=tokens, at=at)
    gateway.served.add(_served_line(attempt, closed, tokens=tokens, at=at))
    if gateway.audit is not None and not admitted.cache.is_hit:
        gateway.audit.observe(admitted, meter, end_cause=closed.end_cause)


def _tell_breaker(attempt: Attempt, deployment: Deployment) -> None:
    """What the attempt says of the server; a client that leaves says nothing."""
    breaker = deployment.breaker
    if attempt.admitted.cache.is_hit:
        breaker.forget()
    elif isinstance(attempt.failure, UpstreamUnavailable | UpstreamFailed):
        breaker.fail()
    elif attempt.refused is not None:
        is_its_own = attempt.refused.answer.status in RETRIED | LASTING
        breaker.fail() if is_its_own else breaker.succeed()
    elif attempt.meter.is_complete:
        breaker.succeed()
    else:
        breaker.forget()


def _seconds(retry_after: str | None) -> float:
    """The header in seconds; as a date, which servers of models do not send, it is ignored."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def _served_line(
    attempt: Attempt, closed: Closed, *, tokens: tuple[int, int], at: datetime
) -> ServedLine:
    admitted, (input_tokens, output_tokens) = attempt.admitted, tokens
    return ServedLine(
        request_id=admitted.opened.request_id,
        event_id=closed.event_id,
        attempt=attempt.number,
        payer_id=admitted.opened.payer_id,
        key_id=admitted.key.id,
        endpoint=admitted.asked.endpoint,
        model=admitted.model.id,
        upstream=admitted.upstream.name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        charged_picos=closed.total.picos,
        held_picos=admitted.hold.amount.picos,
        outcome=closed.end_cause,
        timestamp=at,
    )
