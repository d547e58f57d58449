"""Writes a scripted answer in the shape of chat, completions or a list."""

from collections.abc import Iterator
from typing import Any

import msgspec

from steelyard.entrypoints.scripted_upstream.script import ScriptedAnswer
from steelyard.gateway.upstreams.habits import COMPLETIONS, MODERATIONS
from steelyard.gateway.upstreams.scripted_lists import list_document

Document = dict[str, Any]


def usage_block(answer: ScriptedAnswer, output_tokens: int) -> Document | None:
    """The usage that is reported once so many tokens are out."""
    match answer.usage:
        case "missing":
            return None
        case "zero":
            return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        case "end" | "every_chunk":
            return {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": answer.prompt_tokens + output_tokens,
            }
        case block:
            return block


def whole_answer(answer: ScriptedAnswer, *, path: str, model: str, choices: int) -> Document:
    """Every choice says the same, and each counts."""
    listed = [_whole_choice(answer, path, index) for index in range(choices)]
    document = {**_envelope(path, model, "chat.completion"), "choices": listed}
    usage = usage_block(answer, answer.output_tokens * choices)
    return document if usage is None else {**document, "usage": usage}


def chunks(
    answer: ScriptedAnswer, *, path: str, model: str, is_counting: bool
) -> Iterator[Document]:
    """The chunks of a stream, one a token, then its end, then the usage."""
    envelope = _envelope(path, model, "chat.completion.chunk")
    count = 0
    for delta in _deltas(answer):
        count += 1
        chunk = {**envelope, "choices": [_chunk_choice(path, delta, None)]}
        if is_counting or answer.usage == "every_chunk":
            chunk["usage"] = usage_block(answer, count)
        yield chunk
    reason = answer.finish_reason or ("tool_calls" if answer.calls else "stop")
    end = {**envelope, "choices": [_chunk_choice(path, {}, reason)]}
    usage = usage_block(answer, count)
    if answer.usage == "every_chunk":
        yield {**end, "usage": usage}
        return
    yield end
    if usage is not None:
        yield {**envelope, "choices": [], "usage": usage}


def list_answer(answer: ScriptedAnswer, *, path: str, model: str, asked: Document) -> Document:
    """Embeddings, classes, moderations or ranks; a moderation of OpenAI's tells no usage."""
    document = list_document(path, asked, model=model)
    usage = None if path == MODERATIONS else usage_block(answer, 0)
    return document if usage is None else {**document, "usage": usage}


def _envelope(path: str, model: str, kind: str) -> Document:
    kind = "text_completion" if path == COMPLETIONS else kind
    return {"id": "scripted", "object": kind, "created": 1, "model": model}


def _deltas(answer: ScriptedAnswer) -> Iterator[Document]:
    for text in answer.thought:
        yield {"reasoning_content": text}
    for word in answer.words:
        yield {"content": word}
    yield from ({"tool_calls": [call]} for call in _calls(answer))


def _calls(answer: ScriptedAnswer) -> list[Document]:
    return [
        {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": msgspec.json.encode(call.arguments).decode(),
            },
        }
        for index, call in enumerate(answer.calls)
    ]


def _chunk_choice(path: str, delta: Document, reason: str | None) -> Document:
    if path == COMPLETIONS:
        return {"index": 0, "text": delta.get("content", ""), "finish_reason": reason}
    return {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": reason}


def _whole_choice(answer: ScriptedAnswer, path: str, index: int) -> Document:
    text = "".join(answer.words)
    reason = answer.finish_reason or ("tool_calls" if answer.calls else "stop")
    if path == COMPLETIONS:
        return {"index": index, "text": text, "finish_reason": reason}
    message: Document = {"role": "assistant", "content": text or None}
    if answer.thought:
        message["reasoning_content"] = "".join(answer.thought)
    if answer.calls:
        message["tool_calls"] = _calls(answer)
    return {"index": index, "message": message, "finish_reason": reason}
