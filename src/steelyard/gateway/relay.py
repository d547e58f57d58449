"""The relay: passes an answer on as it comes. What is in it, its workload's Answer reads."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import anyio

from steelyard.gateway.admission import Admitted
from steelyard.gateway.cut_short import cut_short, output_tokens_so_far
from steelyard.gateway.event_stream import payload_of
from steelyard.gateway.upstreams.base import UpstreamAnswer, UpstreamFailed, UpstreamKeyRefused
from steelyard.gateway.workloads.answer import Answer
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import Usage

# What an upstream says of our key is no business of the client's, who has another one.
KEY_REFUSED = frozenset({401, 403})


class UpstreamRefused(Exception):
    """The upstream said no before it produced anything; its answer goes to the client."""

    def __init__(self, answer: UpstreamAnswer) -> None:
        super().__init__(f"upstream status {answer.status}")
        self.answer = answer


class ClientLeft(Exception):
    """The client's socket takes nothing any more."""


class EventTaker(Protocol):
    """Takes the events of a stream, those in one piece that came together."""

    async def send(self, event: bytes) -> None:
        """Hand bytes over; returns when the socket has taken them, or raises ClientLeft."""
        ...


class Client(EventTaker, Protocol):
    """The one who asked."""

    async def start_stream(self, headers: dict[str, str]) -> None: ...

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """Call this from the event loop once the client has gone, also if it has already; only the
        newest is called. None: nobody wants to know any more."""
        ...

    async def left(self) -> None:
        """Return when the client has gone, and never before."""
        ...


async def relay_whole(
    admitted: Admitted, answer: Answer, meter: AnswerMeter, *, now: Callable[[], datetime]
) -> None:
    """Fetch the answer; raises UpstreamRefused, UpstreamUnavailable or UpstreamFailed."""
    came = await admitted.upstream.answer(
        admitted.upstream_path,
        admitted.upstream_body(),
        request_id=admitted.hold.id,
        tenant=admitted.opened.organisation_id,
        content_type=admitted.way.content_type,
    )
    if came.status != 200:
        raise _refusal(admitted, came)
    read = answer.read_whole(came.body, meter)
    if admitted.asked.keep is not None:
        # An answer that cannot be kept will be asked for again: it is not whole, and costs nothing.
        meter.is_complete = False
        with anyio.CancelScope(shield=True):
            await admitted.asked.keep(admitted.hold.id, came.body)
        meter.is_complete = True
    meter.deliver([read], reported=meter.reported, at=now())


async def relay_stream(
    admitted: Admitted,
    answer: Answer,
    meter: AnswerMeter,
    client: EventTaker,
    *,
    now: Callable[[], datetime],
) -> None:
    """Pass events on as they come, all but the end; raises as `relay_whole` does."""
    async with admitted.upstream.stream(
        admitted.upstream_path,
        admitted.upstream_body(),
        request_id=admitted.hold.id,
        tenant=admitted.opened.organisation_id,
        content_type=admitted.way.content_type,
    ) as stream:
        if stream.status != 200:
            raise _refusal(admitted, await stream.refusal())
        async for payloads in stream.payloads():
            if admitted.held.chunk_tokens:
                await _pass_on_covered(admitted, payloads, answer, meter, client, now=now)
            else:
                await _pass_on(payloads, answer, meter, client, now=now)
            if meter.is_complete or meter.is_growth_denied:
                return
    answer.end_of_stream(meter)
    if not meter.is_complete:
        raise UpstreamFailed("the model's server ended the answer early")


async def _pass_on(
    payloads: Sequence[bytes],
    answer: Answer,
    meter: AnswerMeter,
    client: EventTaker,
    *,
    now: Callable[[], datetime],
) -> None:
    """Hand on in one piece what came together, with what was reported up to its last event."""
    written: list[bytes] = []
    reported: Usage | None = None
    try:
        for payload in payloads:
            events = answer.read_event(payload, meter)
            if events:
                written.extend(events)
                newest = meter.reported
                if newest is not reported and newest is not None and newest.has_output:
                    reported = newest
            if meter.is_complete:
                break
    finally:
        # What came before an event that cannot be read is the client's all the same.
        if written:
            await client.send(b"".join(written))
            meter.deliver([payload_of(one) for one in written], reported=reported, at=now())


async def _pass_on_covered(
    admitted: Admitted,
    payloads: Sequence[bytes],
    answer: Answer,
    meter: AnswerMeter,
    client: EventTaker,
    *,
    now: Callable[[], datetime],
) -> None:
    """Hand on one by one, as far as the hold can grow to cover."""
    for payload in payloads:
        if not await _is_covered(admitted, payload):
            for event in cut_short(answer, payload, meter):
                await client.send(event)
            return
        await _pass_on([payload], answer, meter, client, now=now)
        if meter.is_complete:
            return


async def _is_covered(admitted: Admitted, payload: bytes) -> bool:
    """Whether what the upstream has made with this event is held for, grown if need be."""
    return await admitted.held.cover(output_tokens_so_far(payload))


def _refusal(admitted: Admitted, came: UpstreamAnswer) -> UpstreamRefused | UpstreamKeyRefused:
    if came.status in KEY_REFUSED:
        return UpstreamKeyRefused(f"{admitted.upstream.name} does not take the key of the gateway")
    return UpstreamRefused(came)
