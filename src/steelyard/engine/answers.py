"""The OpenAI response bodies: whole answers, and the chunks of a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from steelyard.engine.attribution import EngineTime
from steelyard.engine.logprob_shapes import chat_logprobs, completion_logprobs
from steelyard.engine.sequence import Delta, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What one request asked to see in its answer."""

    request_id: str
    model: str
    created: int
    is_chat: bool
    prompt_token_ids: list[int]
    read_token: Callable[[int], bytes]
    device_kind: str = "cpu"
    with_token_ids: bool = False
    with_usage: bool = False
    with_running_usage: bool = False
    with_logprobs: bool = False

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

    def logprobs(self, deltas: list[Delta], *, text_offset: int) -> dict[str, Any] | None:
        """How likely the tokens of these deltas were, if that was asked."""
        if not self.with_logprobs:
            return None
        told = [found for delta in deltas for found in delta.logprobs]
        if self.is_chat:
            return chat_logprobs(told, self.read_token)
        return completion_logprobs(told, self.read_token, text_offset=text_offset)


def whole_answer(
    shape: AnswerShape, deltas: list[list[Delta]], *, sequences: list[Sequence]
) -> dict[str, Any]:
    """The body of an answer that is not streamed; one list of deltas for each choice."""
    counts = [sum(len(delta.token_ids) for delta in of_choice) for of_choice in deltas]
    body = shape.envelope(is_chunk=False)
    body["choices"] = [_whole_choice(shape, i, found) for i, found in enumerate(deltas)]
    body["usage"] = shape.usage(sequences, completion_tokens=sum(counts))
    if shape.with_token_ids:
        body["prompt_token_ids"] = shape.prompt_token_ids
    return body


def _whole_choice(shape: AnswerShape, index: int, deltas: list[Delta]) -> dict[str, Any]:
    end = deltas[-1].end
    assert end is not None, "an answer is whole only once its sequence has ended"
    text = "".join(delta.text for delta in deltas)
    choice: dict[str, Any] = {
        "index": index,
        "logprobs": shape.logprobs(deltas, text_offset=0),
        "finish_reason": end.value,
    }
    if shape.is_chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    if shape.with_token_ids:
        choice["token_ids"] = [token_id for delta in deltas for token_id in delta.token_ids]
    return choice


class ChunkWriter:
    """Turns the deltas of a request's sequences into the chunks of its stream."""

    def __init__(self, shape: AnswerShape, sequences: list[Sequence]) -> None:
        self._shape = shape
        self._sequences = sequences
        self._completion_tokens = 0
        self._begun: set[int] = set()
        self._text_offsets = [0] * len(sequences)
        self._open = len(sequences)
        self._has_shown_prompt = False

    @property
    def is_done(self) -> bool:
        """Whether every choice has ended."""
        return self._open == 0

    def chunks(self, index: int, delta: Delta) -> Iterator[dict[str, Any]]:
        """The chunks that one delta of a choice makes: at most role, text, end and usage."""
        if index not in self._begun:
            self._begun.add(index)
            if self._shape.is_chat:
                yield self._chunk(index, Delta(), role="assistant")
        self._completion_tokens += len(delta.token_ids)
        if delta.text or (delta.end is None and self._shows_tokens):
            yield self._chunk(index, delta)
            self._text_offsets[index] += len(delta.text)
            delta = Delta(end=delta.end)
        if delta.end is not None:
            self._open -= 1
            yield self._chunk(index, delta, finish_reason=delta.end.value)
            if self._shape.with_usage and self.is_done:
                yield self._usage_chunk()

    @property
    def _shows_tokens(self) -> bool:
        shape = self._shape
        return shape.with_token_ids or shape.with_running_usage or shape.with_logprobs

    def _chunk(
        self,
        index: int,
        delta: Delta,
        *,
        role: str | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        logprobs = None
        if delta.logprobs:
            logprobs = self._shape.logprobs([delta], text_offset=self._text_offsets[index])
        choice: dict[str, Any] = {
            "index": index,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        if not self._shape.is_chat:
            choice["text"] = delta.text
        elif role is not None:
            choice["delta"] = {"role": role, "content": ""}
        else:
            choice["delta"] = {} if finish_reason is not None else {"content": delta.text}
        if self._shape.with_token_ids:
            choice["token_ids"] = delta.token_ids
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
