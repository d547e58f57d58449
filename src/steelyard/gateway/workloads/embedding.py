"""Embeddings: POST /v1/embeddings (https://platform.openai.com/docs/api-reference/embeddings)."""

from typing import Any, Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.upstreams.habits import EMBEDDINGS
from steelyard.gateway.workloads.answer import (
    PricedUsage,
    read_document,
    refuse_error,
    report_usage,
)
from steelyard.gateway.workloads.asked import (
    Asked,
    Way,
    count_utf8_bytes,
    digest_request,
    read_fields,
    read_typed,
)
from steelyard.metering.answer_meter import AnswerMeter
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
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=_size(typed.input),
        output_tokens_max=None,
        choice_count=0,
        is_streamed=False,
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(
            Way(
                path=EMBEDDINGS,
                fields=lambda: fields,
                open_answer=EmbeddingAnswer,
                prompt_fields=("input",),
                limit_field=None,
                takes_stream_options=False,
            ),
        ),
    )


class EmbeddingAnswer:
    """Implements Answer for work that reads and writes nothing; it is never streamed."""

    def __init__(self) -> None:
        self._document: dict[str, msgspec.Raw] = {}

    def read_whole(self, body: bytes, meter: AnswerMeter) -> bytes:
        self._document = read_document(body)
        refuse_error(self._document)
        if "data" not in self._document:
            raise UpstreamFailed("the model's server sent an answer without embeddings")
        report_usage(self._document.get("usage"), meter)
        meter.is_complete = True
        return bytes(self._document["data"])

    def write_whole(self, priced: PricedUsage) -> bytes:
        raw = self._document.get("usage")
        usage: dict[str, Any] | None = msgspec.json.decode(raw) if raw else None
        count = priced.usage.input_tokens
        block = usage or {"prompt_tokens": count, "total_tokens": count}
        return msgspec.json.encode({**self._document, "usage": {**block, **priced.price_fields()}})

    def read_event(self, payload: bytes, meter: AnswerMeter) -> list[bytes]:
        raise NotImplementedError("embeddings are not streamed")

    def end_of_stream(self, meter: AnswerMeter) -> None:
        raise NotImplementedError("embeddings are not streamed")

    def write_end(self, priced: PricedUsage, *, wants_usage: bool) -> list[bytes]:
        raise NotImplementedError("embeddings are not streamed")


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
