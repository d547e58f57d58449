"""Answers of a server that speaks Anthropic's API, passed on as they come."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from steelyard.gateway.event_stream import write_named_event
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    read_as,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import (
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
)

# Anthropic's word for an answer that met its limit.
LIMIT_REASON: Final = "max_tokens"
_EMPTY_STOP: Final[dict[str, Any]] = {"stop_reason": None, "stop_sequence": None}


class _Event(msgspec.Struct):
    """What we look at in an event."""

    type: str
    message: dict[str, msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None
    delta: msgspec.Raw = msgspec.Raw(b"null")


class _Stop(msgspec.Struct):
    stop_reason: str | None = None


_event_decoder = msgspec.json.Decoder(_Event)
_stop_decoder = msgspec.json.Decoder(_Stop)
_usage_decoder = msgspec.json.Decoder(dict[str, Any])


class MessagesAnswer:
    """Implements Answer; each event keeps its name, which its data says as well."""

    def __init__(self) -> None:
        self._document: dict[str, msgspec.Raw] = {}
        self._usage: dict[str, Any] = {}

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        if "content" not in self._document:
            raise UpstreamFailed("the model's server sent a message without content")
        raw = self._document.get("usage")
        if report_usage(raw, meter) and raw is not None:
            self._usage = read_as(_usage_decoder, raw)
        self._see_stop(read_as(_stop_decoder, body), meter)
        meter.is_complete = True
        return bytes(self._document["content"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        return msgspec.json.encode({**self._document, "usage": messages_usage(self._usage, priced)})

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        event = read_as(_event_decoder, payload)
        match event.type:
            case "error":
                raise UpstreamFailed("the model's server broke off in the middle of the answer")
            case "message_start" if event.message and "usage" in event.message:
                # The one token of output that is announced here has not been made yet.
                started = read_as(_usage_decoder, event.message["usage"]) | {"output_tokens": 0}
                self._report(started, meter)
            case "message_delta":
                self._document = read_document(payload)
                self._report(event.usage or {}, meter)
                self._see_stop(read_as(_stop_decoder, event.delta), meter)
                return ()
            case "message_stop":
                meter.is_complete = True
                return ()
            case _:
                pass
        return (write_named_event(event.type, payload),)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        meter.is_complete = meter.finish_reason is not None

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        delta: dict[str, Any] = {
            "type": "message_delta",
            "delta": _EMPTY_STOP,
            **self._document,
            "usage": messages_usage(self._usage, priced),
        }
        return (
            write_named_event("message_delta", msgspec.json.encode(delta)),
            write_named_event("message_stop", b'{"type":"message_stop"}'),
        )

    def _report(self, block: dict[str, Any], meter: AnswerMeter) -> None:
        """The blocks of a message add up: each says only what is new or has changed."""
        self._usage |= {name: value for name, value in block.items() if value is not None}
        report_usage(msgspec.Raw(msgspec.json.encode(self._usage)), meter)

    def _see_stop(self, stop: _Stop, meter: AnswerMeter) -> None:
        if stop.stop_reason is not None:
            is_limit = stop.stop_reason == LIMIT_REASON
            meter.finish_reason = "length" if is_limit else stop.stop_reason


def messages_usage(block: dict[str, Any], priced: PricedUsage) -> dict[str, Any]:
    """Anthropic's usage block, or our counts in its shape, with the price on it.

    Its counts are disjoint, as our meters are: input_tokens are those without any cache.
    """
    if not block:
        usage = priced.usage
        read = usage.count(INPUT_TEXT_CACHE_READ)
        written = usage.count(INPUT_TEXT_CACHE_WRITE) + usage.count(INPUT_TEXT_CACHE_WRITE_1H)
        block = {
            "input_tokens": usage.input_tokens - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": usage.output_tokens,
        }
    return {**block, **priced.price_fields()}
