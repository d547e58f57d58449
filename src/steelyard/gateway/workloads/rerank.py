"""Rerank: POST /v1/rerank puts documents in the order of their relevance to a query.

The shape is that of Jina and vLLM. It is priced by the tokens that are read.
"""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import RERANK
from steelyard.gateway.workloads.asked import (
    Asked,
    count_utf8_bytes,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.classification import SPECIAL_TOKENS, check_item_count
from steelyard.gateway.workloads.list_asked import asked_for_list
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = RERANK


class Document(msgspec.Struct):
    text: str


class RerankFields(msgspec.Struct):
    model: str | None = None
    query: str | None = None
    documents: list[str | Document] | None = None
    top_n: int | None = None


_decoder = msgspec.json.Decoder(RerankFields)


def parse_rerank(body: bytes) -> Asked:
    """Read a request for an order; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    return asked_for_list(
        body,
        fields,
        path=ENDPOINT,
        model=typed.model,
        size=_size(typed),
        prompt_fields=("query", "documents"),
        answer_field="results",
    )


def _size(typed: RerankFields) -> PromptSize:
    """Models that read the query beside each document read it as many times."""
    if not typed.query:
        raise EmptyPrompt("query must have some text", parameter="query")
    documents = typed.documents or []
    check_item_count(len(documents), parameter="documents")
    if typed.top_n is not None and typed.top_n < 1:
        message = f"top_n must be at least 1, got {typed.top_n}"
        raise InvalidRequest(message, parameter="top_n")
    texts = [one if isinstance(one, str) else one.text for one in documents]
    query = count_utf8_bytes(typed.query, parameter="query")
    kept = sum(count_utf8_bytes(text, parameter="documents") for text in texts)
    count = len(texts)
    return PromptSize(kept + query * count, kept, 0, 2 * SPECIAL_TOKENS * count)
