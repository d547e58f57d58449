"""Answers of a server that speaks OpenAI's Responses API, passed on as they come."""

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
    INPUT_AUDIO_TOKENS_CACHE_READ,
    INPUT_TEXT_CACHE_READ,
    OUTPUT_TEXT_REASONING,
)

ENDS: Final = frozenset({"response.completed", "response.incomplete"})
FAILURES: Final = frozenset({"response.failed", "error"})


class _Event(msgspec.Struct):
    """What we look at in an event."""

    type: str
    response: msgspec.Raw = msgspec.Raw(b"null")


class _Response(msgspec.Struct):
    status: str | None = None


_event_decoder = msgspec.json.Decoder(_Event)
_response_decoder = msgspec.json.Decoder(_Response)


class ResponsesAnswer:
    """Implements Answer; each event keeps its name, which its data says as well."""

    def __init__(self) -> None:
        self._event: dict[str, msgspec.Raw] = {}
        self._response: dict[str, msgspec.Raw] = {}

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._read_response(msgspec.Raw(body), meter)
        return bytes(self._response["output"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        return msgspec.json.encode(self._priced(priced))

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        event = read_as(_event_decoder, payload)
        if event.type in FAILURES:
            raise UpstreamFailed("the model's server broke off in the middle of the answer")
        if event.type in ENDS:
            self._event = read_document(payload)
            self._read_response(event.response, meter)
            return ()
        return (write_named_event(event.type, payload),)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        """The last event is what makes an answer whole."""

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        event: dict[str, Any] = {**self._event, "response": self._priced(priced)}
        name = msgspec.json.decode(self._event["type"], type=str)
        return (write_named_event(name, msgspec.json.encode(event)),)

    def _read_response(self, raw: msgspec.Raw, meter: AnswerMeter) -> None:
        self._response = read_document(raw)
        refuse_error(self._response)
        if "output" not in self._response:
            raise UpstreamFailed("the model's server sent a response without output")
        response = read_as(_response_decoder, raw)
        if response.status == "failed":
            raise UpstreamFailed("the model's server could not finish the answer")
        report_usage(self._response.get("usage"), meter)
        meter.finish_reason = "length" if response.status == "incomplete" else "stop"
        meter.is_complete = True

    def _priced(self, priced: PricedUsage) -> dict[str, Any]:
        raw = self._response.get("usage")
        block: dict[str, Any] | None = msgspec.json.decode(raw) if raw else None
        usage = {**block, **priced.price_fields()} if block else response_usage(priced)
        return {**self._response, "usage": usage}


def response_usage(priced: PricedUsage) -> dict[str, Any]:
    """Our counts in the shape of the Responses API, with the price on them."""
    usage = priced.usage
    cached = usage.count(INPUT_TEXT_CACHE_READ) + usage.count(INPUT_AUDIO_TOKENS_CACHE_READ)
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.count(OUTPUT_TEXT_REASONING)},
        "total_tokens": usage.input_tokens + usage.output_tokens,
        **priced.price_fields(),
    }
