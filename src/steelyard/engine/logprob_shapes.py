"""Log probabilities as OpenAI writes them: one way in chat, another in plain completions."""

from collections.abc import Callable
from typing import Any

from steelyard.engine.sampler import TokenLogprob

ReadToken = Callable[[int], bytes]


def chat_logprobs(told: list[TokenLogprob], read: ReadToken) -> dict[str, Any]:
    """One entry for each token, with its bytes, because half a character is no text."""
    content = [
        _entry(found.token_id, found.logprob, read)
        | {"top_logprobs": [_entry(token_id, value, read) for token_id, value in found.top]}
        for found in told
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    told: list[TokenLogprob], read: ReadToken, *, text_offset: int
) -> dict[str, Any]:
    """Four lists side by side."""
    tokens = [_text(read(found.token_id)) for found in told]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [found.logprob for found in told],
        "top_logprobs": [
            {_text(read(token_id)): value for token_id, value in found.top} for found in told
        ],
        "text_offset": offsets,
    }


def _entry(token_id: int, logprob: float, read: ReadToken) -> dict[str, Any]:
    raw = read(token_id)
    return {"token": _text(raw), "logprob": logprob, "bytes": list(raw)}


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
