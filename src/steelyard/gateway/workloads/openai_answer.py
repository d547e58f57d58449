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


_NOTHING: Final = msgspec.Raw(b"null")


class _Chunk(msgspec.Struct):
    """What we look at in an event of a stream."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


_USAGE: Final = b'"usage"'
# What follows that name where there is none yet and it is the last field.
_NONE_YET: Final = frozenset({b":null}", b": null}"})
_chunk_decoder = msgspec.json.Decoder(_Chunk)
_choices_decoder = msgspec.json.Decoder(list[_Choice] | None)


class OpenAIAnswer:
    """Implements Answer for chat and completions that the client asked for in that shape."""

    def __init__(self, *, choice_count: int = 1) -> None:
        self._choice_count = choice_count
        self._ended: set[int] = set()
        self._document: dict[str, msgspec.Raw] = {}
        # The last event of a stream that was read.
        self._chunk = b""
        self._usage: msgspec.Raw | None = None

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        if "choices" not in self._document:
            raise UpstreamFailed("the model's server sent an answer without choices")
        self._usage = self._document.get("usage")
        report_usage(self._usage, meter)
        self._see_ends(_read_choices(self._document.get("choices")), meter)
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
        chunk = _read_chunk(payload)
        if bytes(chunk.error) != b"null":
            raise UpstreamFailed("the model's server broke off in the middle of the answer")
        self._chunk = payload
        is_reported = report_usage(None if chunk.usage is _NOTHING else chunk.usage, meter)
        if is_reported:
            self._usage = chunk.usage
        if chunk.choices:
            self._see_ends(chunk.choices, meter)
        elif is_reported:
            # The usage chunk: it leaves with the price on it, once the event is durable.
            return ()
        return (write_event(_without_usage(payload, chunk.usage)),)

    def end_of_stream(self, meter: AnswerMeter) -> None:
        # Some servers close the connection where they should say [DONE].
        if len(self._ended) >= self._choice_count:
            meter.is_complete = True

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        if not wants_usage:
            return (write_event(DONE),)
        last = read_document(self._chunk) if self._chunk else self._document
        chunk: dict[str, Any] = {name: last[name] for name in _ENVELOPE if name in last}
        chunk |= {"choices": [], "usage": openai_usage(self._usage, priced)}
        return write_event(msgspec.json.encode(chunk)), write_event(DONE)

    def _see_ends(self, choices: Sequence[_Choice], meter: AnswerMeter) -> None:
        """Tell the meter why choices have ended."""
        for choice in choices:
            if choice.finish_reason is not None:
                self._ended.add(choice.index)
                # Of several choices, one that was cut short says more than those that were not.
                if meter.finish_reason != "length":
                    meter.finish_reason = choice.finish_reason


def _read_chunk(payload: bytes) -> _Chunk:
    try:
        return _chunk_decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("the model's server sent choices that we cannot read") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamFailed("the model's server sent something that is not JSON") from error


def _read_choices(raw: msgspec.Raw | None) -> Sequence[_Choice]:
    try:
        return (_choices_decoder.decode(raw) if raw is not None else None) or ()
    except msgspec.ValidationError as error:
        raise UpstreamFailed("the model's server sent choices that we cannot read") from error


def _without_usage(payload: bytes, usage: msgspec.Raw) -> bytes:
    """An event without its usage, which is told at the end, with its price."""
    if usage is _NOTHING:
        return payload
    # In most it is the last field, and is cut off. What stands behind a name and ends the document
    # is a field of the document, and it is the only one of that name.
    before, _, after = payload.partition(_USAGE)
    is_last = after in _NONE_YET or after.removeprefix(b":").lstrip(b" ") == bytes(usage) + b"}"
    if is_last and before.endswith((b",", b", ")):
        return before.rstrip(b", ") + b"}"
    document = read_document(payload)
    document.pop("usage", None)
    return msgspec.json.encode(document)
