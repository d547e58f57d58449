"""Reads the text of an answer out of what the client was handed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec


class AnswerUnreadable(ValueError):
    """The answer is not of OpenAI's shape."""


@dataclass(slots=True)
class ChoiceText:
    """One choice: its text, and why it ended. `is_plain` where it has nothing but text."""

    text: str = ""
    finish_reason: str | None = None
    is_plain: bool = True


class _Spoken(msgspec.Struct):
    content: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: Any = None

    def is_plain(self) -> bool:
        others = self.tool_calls, self.function_call, self.audio, self.refusal
        return not any((*others, self.reasoning_content, self.reasoning))


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Spoken | None = None
    delta: _Spoken | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_choices_decoder = msgspec.json.Decoder(list[_Choice])


def read_answer(answer: bytes, *, is_streamed: bool) -> list[ChoiceText]:
    """The choices of an answer, whole; raises AnswerUnreadable."""
    try:
        if not is_streamed:
            return _join(_choices_decoder.decode(answer or b"[]"))
        chunks = [_chunk_decoder.decode(line) for line in answer.split(b"\n") if line]
        return _join(choice for chunk in chunks for choice in chunk.choices)
    except msgspec.DecodeError as error:
        raise AnswerUnreadable(str(error)) from error


def _join(choices: Iterable[_Choice]) -> list[ChoiceText]:
    joined: dict[int, ChoiceText] = {}
    parts: dict[int, list[str]] = {}
    for choice in choices:
        whole = joined.setdefault(choice.index, ChoiceText())
        spoken = choice.message or choice.delta or _Spoken()
        parts.setdefault(choice.index, []).append(choice.text or spoken.content or "")
        whole.is_plain = whole.is_plain and spoken.is_plain()
        whole.finish_reason = choice.finish_reason or whole.finish_reason
    for index, whole in joined.items():
        whole.text = "".join(parts[index])
    return [joined[index] for index in sorted(joined)]
