"""Answers of a chat server, told as a response: items of thought, text and calls of functions."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from steelyard.clock import unix_seconds
from steelyard.gateway.event_stream import write_named_event
from steelyard.gateway.workloads.answer import PricedUsage
from steelyard.gateway.workloads.chat_pieces import ChatChoice, ChatReader, ToolCall
from steelyard.gateway.workloads.response_items import Item
from steelyard.gateway.workloads.responses_answer import response_usage
from steelyard.ids import new_id
from steelyard.metering.answer_meter import AnswerMeter

Document = dict[str, Any]
# What a response repeats of its request, and what it says where the request says nothing.
ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class ChatAsResponse:
    """Implements Answer over a chat upstream for a client that asked for a response."""

    def __init__(self, body: bytes) -> None:
        self._asked: Document = msgspec.json.decode(body)
        self._reader = ChatReader()
        self._id = f"resp_{new_id()}"
        self._created_at = unix_seconds()
        self._items: list[Item] = []
        self._sequence = 0

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        choices = self._reader.read_whole(body, meter)
        for _ in self._events(self._reader.choice):
            pass
        return choices

    def write_whole(self, priced: PricedUsage) -> bytes:
        for item in self._items:
            item.is_done = True
        return msgspec.json.encode(self._response(priced))

    def read_event(self, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
        choice = self._reader.read_event(payload, meter)
        if choice is None:
            return ()
        return tuple(self._events(choice))

    def end_of_stream(self, meter: AnswerMeter) -> None:
        self._reader.end_of_stream(meter)

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> Sequence[bytes]:
        events = [*self._start(), *self._close_item()]
        response = self._response(priced)
        events.append(self._event(f"response.{response['status']}", {"response": response}))
        return events

    def _events(self, choice: ChatChoice) -> Iterator[bytes]:
        """What a piece of chat adds to the response."""
        yield from self._start()
        for kind, text in (("reasoning", choice.thought), ("message", choice.text)):
            if text:
                yield from self._open_item(kind)
                yield from self._add(text)
        if choice.refusal:
            yield from self._open_item("refusal")
            yield from self._add(choice.refusal)
        for call in choice.calls:
            yield from self._open_item("function_call", call)
            if call.arguments:
                yield from self._add(call.arguments)

    def _start(self) -> Iterator[bytes]:
        if self._sequence:
            return
        response = self._response(None)
        yield self._event("response.created", {"response": response})
        yield self._event("response.in_progress", {"response": response})

    def _open_item(self, kind: str, call: ToolCall | None = None) -> Iterator[bytes]:
        last = self._items[-1] if self._items else None
        if last is not None and not last.is_done and last.is_same(kind, call):
            return
        yield from self._close_item()
        item = Item(kind, index=len(self._items), call=call)
        self._items.append(item)
        for name, fields in item.opening():
            yield self._event(name, fields)

    def _add(self, text: str) -> Iterator[bytes]:
        name, fields = self._items[-1].add(text)
        yield self._event(name, fields)

    def _close_item(self) -> Iterator[bytes]:
        if not self._items or self._items[-1].is_done:
            return
        for name, fields in self._items[-1].closing():
            yield self._event(name, fields)

    def _response(self, priced: PricedUsage | None) -> Document:
        """The response as it stands; it has a usage once it has a price."""
        is_cut = self._reader.choice.finish_reason == "length"
        ended = "incomplete" if is_cut else "completed"
        echoed = {name: self._asked.get(name) or value for name, value in ECHOED.items()}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": ended if priced else "in_progress",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut and priced else None,
            "model": self._asked.get("model") or self._reader.model,
            "output": [item.as_document() for item in self._items],
            "previous_response_id": None,
            "reasoning": self._asked.get("reasoning") or {"effort": None, "summary": None},
            "store": False,
            **echoed,
            "usage": response_usage(priced) if priced else None,
        }

    def _event(self, name: str, fields: Document) -> bytes:
        document = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return write_named_event(name, msgspec.json.encode(document))
