"""The OpenAI response bodies: whole answers, and the chunks of a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steelyard.engine.attribution import EngineTime
from steelyard.engine.sequence import Delta, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What one request asked to see in its answer."""

    request_id: str
    model: str
    created: int
    is_chat: bool
    prompt_token_ids: list[int]
    device_kind: str = "cpu"
    with_token_ids: bool = False
    with_usage: bool = False
    with_running_usage: bool = False

    @property
    def answer_id(self) -> str:
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.request_id}"

    def usage(self, sequences: list[Sequence], *, completion_tokens: int) -> dict[str, Any]:
        """Counts of ids fed, found in the cache, and produced; and the time that they took."""
        prompt_tokens = len(self.prompt_token_ids)
        time = EngineTime()
        for sequence in sequences:
            time.add(sequence.time)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            # The first answer is the one that had the prompt computed; the others share it.
            "prompt_tokens_details": {"cached_tokens": sequences[0].cached_tokens or 0},
            "engine": {
                "engine_us": time.engine_us,
                "device_us": time.device_us,
                "device": self.device_kind,
            },
        }

    def envelope(self, *, is_chunk: bool) -> dict[str, Any]:
        """What every body of this answer begins with."""
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def whole_answer(
    shape: AnswerShape, deltas: list[Delta], *, sequences: list[Sequence]
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    end = deltas[-1].end
    assert end is not None, "an answer is whole only once its sequence has ended"
    text = "".join(delta.text for delta in deltas)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": end.value}
    if shape.is_chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    if shape.with_token_ids:
        choice["token_ids"] = token_ids
    usage = shape.usage(sequences, completion_tokens=len(token_ids))
    body = shape.envelope(is_chunk=False)
    body |= {"choices": [choice], "usage": usage}
    if shape.with_token_ids:
        body["prompt_token_ids"] = shape.prompt_token_ids
    return body


class ChunkWriter:
    """Turns the deltas of one sequence into the chunks of its stream."""

    def __init__(self, shape: AnswerShape, sequences: list[Sequence]) -> None:
        self._shape = shape
        self._sequences = sequences
        self._completion_tokens = 0
        self._has_begun = False
        self._has_shown_prompt = False

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The chunks that one delta makes: at most role, text, end and usage."""
        if not self._has_begun:
            self._has_begun = True
            if self._shape.is_chat:
                yield self._chunk("", [], role="assistant")
        self._completion_tokens += len(delta.token_ids)
        token_ids = delta.token_ids
        if delta.text or (delta.end is None and self._shows_counts):
            yield self._chunk(delta.text, token_ids)
            token_ids = []
        if delta.end is not None:
            yield self._chunk("", token_ids, finish_reason=delta.end.value)
            if self._shape.with_usage:
                yield self._usage_chunk()

    @property
    def _shows_counts(self) -> bool:
        return self._shape.with_token_ids or self._shape.with_running_usage

    def _chunk(
        self,
        text: str,
        token_ids: list[int],
        *,
        role: str | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if not self._shape.is_chat:
            choice["text"] = text
        elif role is not None:
            choice["delta"] = {"role": role, "content": ""}
        else:
            choice["delta"] = {} if finish_reason is not None else {"content": text}
        if self._shape.with_token_ids:
            choice["token_ids"] = token_ids
        chunk = self._shape.envelope(is_chunk=True) | {"choices": [choice]}
        if self._shape.with_token_ids and not self._has_shown_prompt:
            self._has_shown_prompt = True
            chunk["prompt_token_ids"] = self._shape.prompt_token_ids
        self._add_counts(chunk)
        return chunk

    def _add_counts(self, chunk: dict[str, Any]) -> None:
        if self._shape.with_running_usage:
            chunk["usage"] = self._usage()
        elif self._shape.with_usage:
            chunk["usage"] = None

    def _usage_chunk(self) -> dict[str, Any]:
        chunk = self._shape.envelope(is_chunk=True)
        return chunk | {"choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return self._shape.usage(self._sequences, completion_tokens=self._completion_tokens)
