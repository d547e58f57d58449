"""Answers in the shape of OpenAI's chat and completions, passed on as they come."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from steelyard.gateway.event_stream import write_event
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    openai_usage,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.metering.answer_meter import AnswerMeter

DONE: Final = b"[DONE]"
_ENVELOPE: Final = ("id", "object", "created", "model", "system_fingerprint")


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


_choices_decoder = msgspec.json.Decoder(list[_Choice] | None)


class OpenAIAnswer:
    """Implements Answer for chat and completions that the client asked for in that shape."""

    def __init__(self, *, choice_count: int = 1) -> None:
        self._choice_count = choice_count
        self._ended: set[int] = set()
        self._document: dict[str, msgspec.Raw] = {}
        self._usage: msgspec.Raw | None = None

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        if "choices" not in self._document:
            raise UpstreamFailed("the model's server sent an answer without choices")
        self._usage = self._document.get("usage")
        report_usage(self._usage, meter)
        self._read_choices(self._document, meter)
        meter.is_complete = True
        return bytes(self._document["choices"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        fields: dict[str, Any] = dict(self._document)
        fields["usage"] = openai_usage(self._usage, priced)
        return msgspec.json.encode(fields)

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        if payload == DONE:
            meter.is_complete = True
            return ()
        chunk = read_document(payload)
        refuse_error(chunk)
        usage = chunk.pop("usage", None)
        is_reported = report_usage(usage, meter)
        if is_reported:
            self._usage = usage
        has_choices = self._read_choices(chunk, meter)
        self._document = chunk
        if is_reported and not has_choices:
            # The usage chunk: it leaves with the price on it, once the event is durable.
            return ()
        return (write_event(msgspec.json.encode(chunk)),)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        # Some servers close the connection where they should say [DONE].
        if len(self._ended) >= self._choice_count:
            meter.is_complete = True

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        if not wants_usage:
            return (write_event(DONE),)
        chunk: dict[str, Any] = {
            name: self._document[name] for name in _ENVELOPE if name in self._document
        }
        chunk |= {"choices": [], "usage": openai_usage(self._usage, priced)}
        return write_event(msgspec.json.encode(chunk)), write_event(DONE)

    def _read_choices(self, chunk: dict[str, msgspec.Raw], meter: AnswerMeter) -> bool:
        """Whether there are choices; the meter learns why they ended."""
        raw = chunk.get("choices")
        try:
            choices = _choices_decoder.decode(raw) if raw is not None else None
        except msgspec.ValidationError as error:
            raise UpstreamFailed("the model's server sent choices that we cannot read") from error
        for choice in choices or ():
            if choice.finish_reason is not None:
                self._ended.add(choice.index)
                # Of several choices, one that was cut short says more than those that were not.
                if meter.finish_reason != "length":
                    meter.finish_reason = choice.finish_reason
        return bool(choices)
