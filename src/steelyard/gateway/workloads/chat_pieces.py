"""Reads a chat answer into pieces that other surfaces can tell: text, thought, calls of tools."""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.workloads.answer import read_document, refuse_error, report_usage
from steelyard.gateway.workloads.openai_answer import DONE
from steelyard.metering.answer_meter import AnswerMeter

_MORE_CALLS_MAX: Final = 1_024


@dataclass(slots=True)
class ToolCall:
    """A call of a tool, or the next piece of one; `id` and `name` come with its first piece."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class ChatChoice:
    """The first choice of a chat answer, or what a chunk adds to it."""

    text: str = ""
    thought: str = ""
    refusal: str = ""
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finish_reason: str | None = None
    stop_string: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    # vLLM's name for the stop string, or the id of the stop token, that ended the answer.
    stop_reason: str | int | None = None


_choices_decoder = msgspec.json.Decoder(list[_Choice] | None)
_model_decoder = msgspec.json.Decoder(str)


class ChatReader:
    """Reads whole answers and chunks; `choice` has what is known of the whole."""

    def __init__(self) -> None:
        self.choice = ChatChoice()
        self.model = ""
        self._call_names: dict[int, ToolCall] = {}

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        document = read_document(body)
        refuse_error(document)
        choices = self._read_choices(document)
        if not choices:
            raise UpstreamFailed("the model's server sent an answer without choices")
        report_usage(document.get("usage"), meter)
        self.choice = self._piece(choices[0])
        meter.finish_reason = self.choice.finish_reason
        meter.is_complete = True
        return bytes(document["choices"])

    def read_event(self, payload: bytes, meter: AnswerMeter) -> ChatChoice | None:
        """What a chunk adds; None where it adds nothing that a client can see."""
        if payload == DONE:
            meter.is_complete = True
            return None
        document = read_document(payload)
        refuse_error(document)
        report_usage(document.get("usage"), meter)
        choices = self._read_choices(document)
        if not choices:
            return None
        piece = self._piece(choices[0])
        if piece.finish_reason is not None:
            self.choice.finish_reason = meter.finish_reason = piece.finish_reason
            self.choice.stop_string = piece.stop_string
        return piece

    def end_of_stream(self, meter: AnswerMeter) -> None:
        meter.is_complete = self.choice.finish_reason is not None

    def _read_choices(self, document: dict[str, msgspec.Raw]) -> list[_Choice]:
        try:
            if "model" in document:
                self.model = _model_decoder.decode(document["model"])
            return _choices_decoder.decode(document.get("choices", b"null")) or []
        except msgspec.ValidationError as error:
            raise UpstreamFailed("the model's server sent choices that we cannot read") from error

    def _piece(self, choice: _Choice) -> ChatChoice:
        said = choice.delta or choice.message or _Message()
        return ChatChoice(
            text=said.content or "",
            thought=said.reasoning_content or said.reasoning or "",
            refusal=said.refusal or "",
            calls=[self._call(i, call) for i, call in enumerate(said.tool_calls or ())],
            finish_reason=choice.finish_reason,
            stop_string=choice.stop_reason if isinstance(choice.stop_reason, str) else None,
        )

    def _call(self, position: int, call: _Call) -> ToolCall:
        """A piece of a call, with the id and name that its first piece had."""
        index = position if call.index is None else call.index
        known = self._call_names.setdefault(index, ToolCall(index))
        if len(self._call_names) > _MORE_CALLS_MAX:
            raise UpstreamFailed("the model's server sent calls of tools without end")
        known.id = call.id or known.id
        known.name = call.function.name or known.name
        return ToolCall(index, known.id, known.name, call.function.arguments or "")
