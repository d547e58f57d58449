"""Answers of a chat server, told as messages: blocks of text, thought and calls of tools."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from steelyard.gateway.event_stream import write_named_event
from steelyard.gateway.workloads.answer import PricedUsage
from steelyard.gateway.workloads.chat_pieces import ChatChoice, ChatReader
from steelyard.gateway.workloads.messages_answer import messages_usage
from steelyard.ids import new_id
from steelyard.metering.answer_meter import AnswerMeter

Document = dict[str, Any]
STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class _Asked(msgspec.Struct):
    model: str | None = None
    stop_sequences: list[str] | None = None


_asked_decoder = msgspec.json.Decoder(_Asked)


class ChatAsMessages:
    """Implements Answer over a chat upstream for a client that asked for a message."""

    def __init__(self, body: bytes) -> None:
        self._asked = _asked_decoder.decode(body)
        self._reader = ChatReader()
        self._id = f"msg_{new_id()}"
        self._has_started = False
        self._block_count = 0
        self._open: tuple[str, int] | None = None

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        return self._reader.read_whole(body, meter)

    def write_whole(self, priced: PricedUsage) -> bytes:
        choice = self._reader.choice
        content: list[Document] = []
        if choice.thought:
            content.append({"type": "thinking", "thinking": choice.thought, "signature": ""})
        if choice.text:
            content.append({"type": "text", "text": choice.text})
        for call in choice.calls:
            given = _decode_arguments(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        message = self._message() | {"content": content} | self._stop(choice)
        return msgspec.json.encode({**message, "usage": messages_usage({}, priced)})

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        choice = self._reader.read_event(payload, meter)
        if choice is None:
            return ()
        return tuple(self._events(choice, meter))

    def end_of_stream(self, meter: AnswerMeter) -> None:
        self._reader.end_of_stream(meter)

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        usage = messages_usage({}, priced)
        events = [] if self._has_started else [self._start(0)]
        events += self._close_block()
        stop = {"type": "message_delta", "delta": self._stop(self._reader.choice), "usage": usage}
        return (*events, _event(stop), _event({"type": "message_stop"}))

    def _events(self, choice: ChatChoice, meter: AnswerMeter) -> Iterator[bytes]:
        """What a piece of chat adds to the message."""
        if not self._has_started:
            yield self._start(meter.reported.input_tokens if meter.reported else 0)
        if choice.thought:
            yield from self._open_block("thinking", 0, {"thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": choice.thought})
        if choice.text:
            yield from self._open_block("text", 0, {"text": ""})
            yield self._delta({"type": "text_delta", "text": choice.text})
        for call in choice.calls:
            start: Document = {"id": call.id, "name": call.name, "input": {}}
            yield from self._open_block("tool_use", call.index, start)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _start(self, input_tokens: int) -> bytes:
        self._has_started = True
        message: Document = {
            **self._message(),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": input_tokens, "output_tokens": 0},
        }
        return _event({"type": "message_start", "message": message})

    def _open_block(self, kind: str, index: int, start: Document) -> Iterator[bytes]:
        if self._open == (kind, index):
            return
        yield from self._close_block()
        self._open = kind, index
        block = {"type": kind, **start}
        yield _event(
            {"type": "content_block_start", "index": self._block_count, "content_block": block}
        )

    def _delta(self, delta: Document) -> bytes:
        return _event({"type": "content_block_delta", "index": self._block_count, "delta": delta})

    def _close_block(self) -> list[bytes]:
        if self._open is None:
            return []
        stop = _event({"type": "content_block_stop", "index": self._block_count})
        self._open = None
        self._block_count += 1
        return [stop]

    def _message(self) -> Document:
        model = self._asked.model or self._reader.model
        return {"id": self._id, "type": "message", "role": "assistant", "model": model}

    def _stop(self, choice: ChatChoice) -> Document:
        if choice.stop_string in (self._asked.stop_sequences or ()):
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_string}
        reason = STOP_REASONS.get(choice.finish_reason or "", "end_turn")
        return {"stop_reason": reason, "stop_sequence": None}


def _event(document: Document) -> bytes:
    return write_named_event(document["type"], msgspec.json.encode(document))


def _decode_arguments(text: str) -> Any:
    """A model may write arguments that are no JSON; the client then sees them as they are."""
    try:
        return msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {"arguments": text}
