"""The life of a request, in one function. Read this first.

Every workload takes the same way: receive, then for each attempt admit (or refuse), relay, record;
then end. Whatever happens after a hold, exactly one usage event closes it. An attempt that failed
before the client saw anything of it may be followed by another, on another server or model.
"""

from collections.abc import Mapping
from typing import Protocol

import anyio
import structlog

from steelyard.access.virtual_key import VirtualKey
from steelyard.errors import Failure, SteelyardError
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.gateway.admission import Admitted, Received
from steelyard.gateway.attempt import Attempt, Gateway, run_attempt
from steelyard.gateway.limit_headers import (
    MESSAGES_ENDPOINT,
    anthropic_limit_headers,
    limit_headers,
)
from steelyard.gateway.relay import Client, ClientLeft, UpstreamRefused
from steelyard.gateway.routing.route_plan import RouteStep, Trouble
from steelyard.gateway.upstreams.base import UpstreamFailed, UpstreamUnavailable
from steelyard.gateway.workloads.asked import Asked
from steelyard.money import write_decimal
from steelyard.timestamp import read_timestamp

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


async def serve(
    gateway: Gateway, asked: Asked, key: VirtualKey, client: AnsweringClient, *, request_id: str
) -> bool:
    """Serve one request from admission to the last byte; refusals are raised to the edge. Whether
    its client was still there at the end."""
    received = gateway.admission.receive(asked, key, request_id=request_id)
    try:
        attempt = await _try_all(gateway, received, client)
    finally:
        received.counting.end()
    if attempt is None:
        return False
    gateway.requests.finish(attempt.closed)
    if attempt.has_left:
        return False
    try:
        await _end(client, attempt)
        return True
    except ClientLeft:
        log.info("client.left_at_the_end", request_id=request_id, event_id=attempt.admitted.hold.id)
        return False


async def _try_all(gateway: Gateway, received: Received, client: Client) -> Attempt | None:
    """The attempt whose end is the client's to see; None if the client left between two."""
    step: RouteStep | None = received.plan.first()
    attempt: Attempt | None = None
    number = 0
    while step is not None:
        if step.wait_s and await _leaves_within(client, step.wait_s):
            return None
        number += 1
        if step.again:
            gateway.requests.try_again(step)
        tried = await _try(gateway, received, step, client, number=number)
        if isinstance(tried, Attempt):
            attempt, trouble = tried, tried.trouble()
        else:
            trouble = _trouble_of_admission(tried)
        step = received.plan.after(step, trouble) if trouble else None
        if step is None and attempt is None:
            assert not isinstance(tried, Attempt), "an attempt that was made is the last one"
            try:
                raise tried
            finally:
                # It knows this frame, which must not know it: nothing collects a large request soon.
                del tried
    return attempt


async def _try(
    gateway: Gateway, received: Received, step: RouteStep, client: Client, *, number: int
) -> Attempt | SteelyardError:
    """One attempt, or why there is none: it was not admitted, and nothing is held for it."""
    try:
        admitted = await gateway.admission.admit(received, step)
    except SteelyardError as error:
        if isinstance(error, UpstreamUnavailable | UpstreamFailed):
            step.deployment.breaker.begin()
            step.deployment.breaker.fail()
        return error
    headers = _headers(admitted, number=number)
    return await run_attempt(
        gateway, admitted, client, step.deployment, headers=headers, number=number
    )


def _trouble_of_admission(error: SteelyardError) -> Trouble | None:
    """An upstream that does not even count a prompt; any other no is final."""
    return Trouble() if isinstance(error, UpstreamUnavailable | UpstreamFailed) else None


async def _leaves_within(client: Client, wait_s: float) -> bool:
    """Whether the client goes away while it would have to wait."""
    with anyio.move_on_after(wait_s):
        await client.left()
        return True
    return False


async def _end(client: AnsweringClient, attempt: Attempt) -> None:
    """Let the client see the end, now that the event is durable."""
    admitted, closed = attempt.admitted, attempt.closed
    assert closed is not None, "an attempt is closed before its end is told"
    is_streamed = admitted.asked.is_streamed
    if isinstance(closed, EventLogUnavailable):
        if not is_streamed:
            raise closed
        await client.fail_stream(closed)
    elif attempt.refused:
        await client.answer_from_upstream(attempt.refused, attempt.headers)
    elif attempt.failure:
        if not is_streamed:
            raise attempt.failure
        await client.fail_stream(attempt.failure)
    elif not is_streamed:
        headers = attempt.headers
        headers["content-type"] = admitted.way.answer_type
        headers["x-steelyard-cost"] = write_decimal(closed.total.picos)
        if closed.saved is not None:
            headers["x-steelyard-saved"] = write_decimal(closed.saved.picos)
        await client.answer(attempt.answer.write_whole(closed.priced), headers)
    else:
        events = attempt.answer.write_end(closed.priced, wants_usage=admitted.asked.wants_usage)
        await client.send(b"".join(events))


def _headers(admitted: Admitted, *, number: int) -> dict[str, str]:
    allowances = admitted.counting.allowances
    headers = {
        "x-request-id": admitted.opened.request_id,
        "x-steelyard-event-id": admitted.hold.id,
        "x-steelyard-model": admitted.model.id,
        "x-steelyard-attempts": str(number),
        **admitted.cache.headers(),
        **limit_headers(allowances),
    }
    if admitted.asked.endpoint == MESSAGES_ENDPOINT:
        at = read_timestamp(admitted.opened.admitted_at)
        headers |= anthropic_limit_headers(allowances, at=at)
    return headers
