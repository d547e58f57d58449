"""Ends a stream before its upstream does, in the words that an upstream would have used."""

from collections.abc import Sequence
from typing import Any

import msgspec

from steelyard.gateway.workloads.answer import Answer
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import read_upstream_usage


class _Choice(msgspec.Struct):
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


_chunk_decoder = msgspec.json.Decoder(_Chunk)


def output_tokens_so_far(payload: bytes) -> int:
    """How many tokens of answer there are with this event; zero where it does not say."""
    try:
        raw = _chunk_decoder.decode(payload).usage
    except msgspec.DecodeError:
        # Whatever it is, the answer's reader will say so.
        return 0
    usage = read_upstream_usage(raw)
    return usage.output_tokens if usage else 0


def cut_short(answer: Answer, payload: bytes, meter: AnswerMeter) -> Sequence[bytes]:
    """The hold cannot grow to cover an event: what tells the client that the answer ends before
    it, at a limit. What it is told that it used is what it has got."""
    chunk: dict[str, Any] = msgspec.json.decode(payload)
    indexes = [choice.index for choice in _chunk_decoder.decode(payload).choices or ()]
    text: dict[str, Any] = (
        {"text": ""} if chunk.get("object") == "text_completion" else {"delta": {}}
    )
    chunk["choices"] = [
        {"index": index, **text, "finish_reason": "length"} for index in indexes or [0]
    ]
    prompt, completion = meter.delivered.input_tokens, meter.delivered.output_tokens
    chunk["usage"] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    meter.is_growth_denied = True
    return answer.read_event(msgspec.json.encode(chunk), meter)
