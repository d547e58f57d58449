"""The items of a response: how each is told in events, piece by piece, and as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from steelyard.gateway.workloads.chat_pieces import ToolCall
from steelyard.ids import new_id

Document = dict[str, Any]
Told = tuple[str, Document]
_PREFIXES: Final = {"message": "msg", "refusal": "msg", "reasoning": "rs", "function_call": "fc"}
# What the events of an item's text are called, and the field that has the text at its end.
_EVENTS: Final = {
    "message": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning": ("response.reasoning_text", "text"),
    "function_call": ("response.function_call_arguments", "arguments"),
}


@dataclass(slots=True)
class Item:
    """One item of a response while it grows."""

    kind: str
    index: int
    call: ToolCall | None = None
    is_done: bool = False
    _pieces: list[str] = field(default_factory=list[str])
    _id: str = ""

    def __post_init__(self) -> None:
        self._id = f"{_PREFIXES[self.kind]}_{new_id()}"

    def is_same(self, kind: str, call: ToolCall | None) -> bool:
        is_same_call = (self.call and self.call.index) == (call and call.index)
        return self.kind == kind and is_same_call

    def opening(self) -> Iterator[Told]:
        yield "response.output_item.added", {"output_index": self.index, "item": self.as_document()}
        if self.kind != "function_call":
            yield "response.content_part.added", {**self._place(), "part": self._part("")}

    def add(self, text: str) -> Told:
        self._pieces.append(text)
        name, _ = _EVENTS[self.kind]
        extra: Document = {"logprobs": []} if self.kind == "message" else {}
        return f"{name}.delta", {**self._place(), "delta": text, **extra}

    def closing(self) -> Iterator[Told]:
        text = "".join(self._pieces)
        name, field_name = _EVENTS[self.kind]
        extra: Document = {"logprobs": []} if self.kind == "message" else {}
        if self.call is not None:
            extra = {"name": self.call.name}
        yield f"{name}.done", {**self._place(), field_name: text, **extra}
        if self.kind != "function_call":
            yield "response.content_part.done", {**self._place(), "part": self._part(text)}
        self.is_done = True
        yield "response.output_item.done", {"output_index": self.index, "item": self.as_document()}

    def as_document(self) -> Document:
        text = "".join(self._pieces)
        status = "completed" if self.is_done else "in_progress"
        if self.call is not None:
            return {
                "id": self._id,
                "type": "function_call",
                "call_id": self.call.id,
                "name": self.call.name,
                "arguments": text,
                "status": status,
            }
        content = [self._part(text)] if self._pieces else []
        if self.kind == "reasoning":
            return {"id": self._id, "type": "reasoning", "summary": [], "content": content}
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, text: str) -> Document:
        match self.kind:
            case "reasoning":
                return {"type": "reasoning_text", "text": text}
            case "refusal":
                return {"type": "refusal", "refusal": text}
            case _:
                return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _place(self) -> Document:
        place: Document = {"item_id": self._id, "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}
