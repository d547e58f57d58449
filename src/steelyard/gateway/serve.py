"""The life of a request, in one function. Read this first.

Every workload takes the same way: admit (or refuse), relay, record, end. Whatever happens after
the hold, exactly one usage event closes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import structlog

from steelyard.access.virtual_key import VirtualKey
from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admission, Admitted
from steelyard.gateway.closing import Closed, close_attempt
from steelyard.gateway.disconnecting import HeldBackClient
from steelyard.gateway.limit_headers import limit_headers
from steelyard.gateway.recent_usage import RecentUsage
from steelyard.gateway.relay import (
    Client,
    ClientLeft,
    UpstreamRefused,
    relay_stream,
    relay_whole,
)
from steelyard.gateway.request_metrics import RequestMetrics
from steelyard.gateway.upstream_audit import UpstreamAudit
from steelyard.gateway.workloads.answer import Answer
from steelyard.gateway.workloads.asked import Asked
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage_event import EndCause
from steelyard.money import write_decimal

log = structlog.get_logger()


class AnsweringClient(Client, Protocol):
    """A client that can be answered in every way there is."""

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None: ...

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None: ...

    async def fail_stream(self, failure: Failure) -> None:
        """End a stream that has begun with an error that the client can read."""
        ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """What serving needs."""

    admission: Admission
    outbox: Outbox
    clock: Clock
    audit: UpstreamAudit | None = None
    recent: RecentUsage = field(default_factory=RecentUsage)
    requests: RequestMetrics = field(default_factory=RequestMetrics)


@dataclass(slots=True)
class _Relayed:
    """An answer, and how its relay ended."""

    answer: Answer
    refused: UpstreamRefused | None = None
    failure: Failure | None = None
    is_over: bool = False


async def serve(
    gateway: Gateway, asked: Asked, key: VirtualKey, client: AnsweringClient, *, request_id: str
) -> None:
    """Serve one request from admission to the last byte; refusals are raised to the edge."""
    admitted = await gateway.admission.admit(asked, key, request_id=request_id)
    meter = AnswerMeter()
    relayed = _Relayed(admitted.way.open_answer())
    closed: Closed | EventLogUnavailable | None = None
    gateway.requests.begin(admitted)
    try:
        await _relay_until_client_leaves(gateway, admitted, meter, client, relayed)
        relayed.is_over = True
    finally:
        # The client may be gone and the server stopping: the attempt is closed all the same.
        with anyio.CancelScope(shield=True):
            admitted.counted.end(tokens=meter.tokens_used)
            try:
                closed = await _close(gateway, admitted, meter, relayed)
            finally:
                gateway.requests.end(admitted)
    assert closed is not None, "an attempt is closed before its end is told"
    try:
        await _end(client, admitted, closed, relayed, is_drained=meter.is_drained)
    except ClientLeft:
        log.info("client.left_at_the_end", request_id=request_id, event_id=admitted.hold.id)


async def _relay_until_client_leaves(
    gateway: Gateway,
    admitted: Admitted,
    meter: AnswerMeter,
    client: Client,
    relayed: _Relayed,
) -> None:
    """Relay; a client that leaves cancels the work upstream."""

    held_back = HeldBackClient(client, admitted, meter, gateway.outbox)

    async def watch() -> None:
        await client.left()
        if not held_back.leave():
            tasks.cancel_scope.cancel()

    now, answer = gateway.clock.now, relayed.answer
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            if admitted.asked.is_streamed:
                headers = _headers(admitted)
                await relay_stream(admitted, answer, meter, held_back, headers=headers, now=now)
            else:
                await relay_whole(admitted, answer, meter, now=now)
        except ClientLeft:
            log.info("client.left", request_id=admitted.opened.request_id)
        except UpstreamRefused as refused:
            relayed.refused = refused
        except Failure as failure:
            relayed.failure = failure
        tasks.cancel_scope.cancel()


async def _close(
    gateway: Gateway, admitted: Admitted, meter: AnswerMeter, relayed: _Relayed
) -> Closed | EventLogUnavailable:
    """Record how the attempt ended; a disk that fails is an answer too."""
    try:
        closed = await close_attempt(
            admitted,
            meter,
            end_cause=_end_cause(relayed, meter),
            at=gateway.clock.now(),
            holding=gateway.admission.holding,
        )
    except EventLogUnavailable as failure:
        return failure
    gateway.recent.add(admitted, closed)
    gateway.requests.observe(admitted, closed, meter, at=gateway.clock.now())
    _log_served(admitted, closed)
    if gateway.audit is not None:
        gateway.audit.observe(admitted, meter, end_cause=closed.end_cause)
    return closed


def _end_cause(relayed: _Relayed, meter: AnswerMeter) -> EndCause:
    has_output = meter.delivered.has_output
    if meter.is_growth_denied:
        return "hold_growth_denied"
    if meter.is_drained:
        return "client_left" if has_output else "client_left_before_first_token"
    if isinstance(relayed.failure, EventLogUnavailable):
        return "event_log_failed"
    if meter.is_complete:
        if meter.reported is None:
            return "usage_missing"
        return "stopped_by_limit" if meter.finish_reason == "length" else "completed"
    if not relayed.is_over:
        return "gateway_stopped"
    if relayed.refused:
        return "upstream_refused"
    if relayed.failure:
        return "upstream_failed" if has_output else "upstream_failed_before_first_token"
    return "client_left" if has_output else "client_left_before_first_token"


async def _end(
    client: AnsweringClient,
    admitted: Admitted,
    closed: Closed | EventLogUnavailable,
    relayed: _Relayed,
    *,
    is_drained: bool,
) -> None:
    """Let the client see the end, now that the event is durable."""
    if is_drained:
        return
    if isinstance(closed, EventLogUnavailable):
        if not admitted.asked.is_streamed:
            raise closed
        await client.fail_stream(closed)
    elif relayed.refused:
        await client.answer_from_upstream(relayed.refused, _headers(admitted))
    elif relayed.failure:
        if not admitted.asked.is_streamed:
            raise relayed.failure
        await client.fail_stream(relayed.failure)
    elif not admitted.asked.is_streamed:
        headers = {
            **_headers(admitted),
            "content-type": admitted.way.answer_type,
            "x-steelyard-cost": write_decimal(closed.total.picos),
        }
        await client.answer(relayed.answer.write_whole(closed.priced), headers)
    else:
        for event in relayed.answer.write_end(
            closed.priced, wants_usage=admitted.asked.wants_usage
        ):
            await client.send(event)


def _headers(admitted: Admitted) -> dict[str, str]:
    return {
        "x-request-id": admitted.opened.request_id,
        "x-steelyard-event-id": admitted.hold.id,
        **limit_headers(admitted.counted.allowances),
    }


def _log_served(admitted: Admitted, closed: Closed) -> None:
    log.info(
        "request.served",
        request_id=admitted.opened.request_id,
        event_id=closed.event_id,
        payer_id=admitted.opened.payer_id,
        key_id=admitted.key.id,
        endpoint=admitted.asked.endpoint,
        model=admitted.model.id,
        input_tokens=closed.usage.input_tokens,
        output_tokens=closed.usage.output_tokens,
        charged_picos=closed.total.picos,
        held_picos=admitted.hold.amount.picos,
        outcome=closed.end_cause,
    )
