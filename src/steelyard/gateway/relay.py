"""The relay: passes an answer on as it comes, and reads from it only what the meter needs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec

from steelyard.gateway.admission import Admitted
from steelyard.gateway.event_stream import write_event
from steelyard.gateway.upstreams.base import UpstreamAnswer, UpstreamFailed
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import OpenAIUsage, translate_openai_usage

DONE = b"[DONE]"


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


_chunk_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_usage_decoder = msgspec.json.Decoder(OpenAIUsage | None)
_choices_decoder = msgspec.json.Decoder(list[_Choice] | None)


class UpstreamRefused(Exception):
    """The upstream said no before it produced anything; its answer goes to the client."""

    def __init__(self, answer: UpstreamAnswer) -> None:
        super().__init__(f"upstream status {answer.status}")
        self.answer = answer


class ClientLeft(Exception):
    """The client's socket takes nothing any more."""


class Client(Protocol):
    """The one who asked, as the relay sees it."""

    async def start_stream(self, headers: dict[str, str]) -> None: ...

    async def send(self, event: bytes) -> None:
        """Hand bytes over; returns when the socket has taken them, or raises ClientLeft."""
        ...

    async def left(self) -> None:
        """Return when the client has gone, and never before."""
        ...


@dataclass(slots=True)
class WholeAnswer:
    """An answer that came in one piece."""

    fields: dict[str, msgspec.Raw]


@dataclass(slots=True)
class StreamEnd:
    """The last chunk of a stream, kept back until the usage event is durable."""

    usage_chunk: dict[str, Any] | None = None


async def relay_whole(
    admitted: Admitted, meter: AnswerMeter, *, now: Callable[[], datetime]
) -> WholeAnswer:
    """Fetch the answer; raises UpstreamRefused, UpstreamUnavailable or UpstreamFailed."""
    answer = await admitted.upstream.answer(
        admitted.asked.upstream_path,
        admitted.upstream_body(),
        request_id=admitted.hold.id,
    )
    if answer.status != 200:
        raise UpstreamRefused(answer)
    fields = _read_chunk(answer.body)
    _report_usage(fields.get("usage"), meter)
    _read_choices(fields, meter)
    meter.deliver(bytes(fields.get("choices", b"")), at=now())
    meter.is_complete = True
    return WholeAnswer(fields)


async def relay_stream(
    admitted: Admitted,
    meter: AnswerMeter,
    client: Client,
    *,
    headers: dict[str, str],
    now: Callable[[], datetime],
) -> StreamEnd:
    """Pass chunks on as they come, all but the last; raises as `relay_whole` does."""
    end = StreamEnd()
    async with admitted.upstream.stream(
        admitted.asked.upstream_path,
        admitted.upstream_body(),
        request_id=admitted.hold.id,
    ) as stream:
        if stream.status != 200:
            raise UpstreamRefused(await stream.refusal())
        await client.start_stream(headers)
        async for payload in stream.payloads():
            if payload == DONE:
                meter.is_complete = True
                break
            await _relay_chunk(payload, meter, client, end, now=now)
    if not meter.is_complete:
        raise UpstreamFailed("the model's server ended the answer early")
    return end


async def _relay_chunk(
    payload: bytes,
    meter: AnswerMeter,
    client: Client,
    end: StreamEnd,
    *,
    now: Callable[[], datetime],
) -> None:
    chunk = _read_chunk(payload)
    if "error" in chunk:
        raise UpstreamFailed("the model's server broke off in the middle of the answer")
    usage = chunk.pop("usage", None)
    _report_usage(usage, meter)
    if not _read_choices(chunk, meter):
        # The usage chunk: it leaves with the price on it, once the event is durable.
        end.usage_chunk = {**chunk, "usage": usage}
        return
    event = msgspec.json.encode(chunk)
    await client.send(write_event(event))
    meter.deliver(event, at=now())


def _read_chunk(payload: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _chunk_decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise UpstreamFailed("the model's server sent something that is not JSON") from error


def _report_usage(raw: msgspec.Raw | None, meter: AnswerMeter) -> None:
    if raw is None:
        return
    try:
        usage = _usage_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("the model's server sent a usage that we cannot read") from error
    if usage is not None:
        meter.report(translate_openai_usage(usage), raw=bytes(raw))


def _read_choices(chunk: dict[str, msgspec.Raw], meter: AnswerMeter) -> list[_Choice]:
    """The choices of a chunk; the meter learns why they ended."""
    raw = chunk.get("choices")
    try:
        choices = _choices_decoder.decode(raw) if raw is not None else None
    except msgspec.ValidationError as error:
        raise UpstreamFailed("the model's server sent choices that we cannot read") from error
    for choice in choices or ():
        if choice.finish_reason is not None:
            meter.finish_reason = choice.finish_reason
    return choices or []
