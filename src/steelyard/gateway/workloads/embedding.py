"""Embeddings: POST /v1/embeddings (https://platform.openai.com/docs/api-reference/embeddings)."""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt
from steelyard.gateway.upstreams.habits import EMBEDDINGS
from steelyard.gateway.workloads.asked import (
    Asked,
    count_utf8_bytes,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.list_asked import asked_for_list
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = EMBEDDINGS


class EmbeddingFields(msgspec.Struct):
    model: str | None = None
    input: str | list[str | int | list[int]] | None = None


_decoder = msgspec.json.Decoder(EmbeddingFields)


def parse_embedding(body: bytes) -> Asked:
    """Read a request for embeddings; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    if not typed.input:
        raise EmptyPrompt("input must have some text", parameter="input")
    return asked_for_list(
        body,
        fields,
        path=ENDPOINT,
        model=typed.model,
        size=_size(typed.input),
        prompt_fields=("input",),
        answer_field="data",
    )


def _size(inputs: str | list[str | int | list[int]]) -> PromptSize:
    """Bytes of all texts; token ids count one each. Each text gets its own special tokens."""
    parts = [inputs] if isinstance(inputs, str) else inputs
    size = text_count = 0
    for part in parts:
        if isinstance(part, str):
            size += count_utf8_bytes(part, parameter="input")
            text_count += 1
        else:
            size += len(part) if isinstance(part, list) else 1
    if not size:
        raise EmptyPrompt("input must have some text", parameter="input")
    return PromptSize(size, size, 0, 2 * text_count)
