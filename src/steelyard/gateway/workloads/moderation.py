"""Moderations: POST /v1/moderations (https://platform.openai.com/docs/api-reference/moderations).

Each text of a list is one item. A list of parts, with texts and images, is one item as a whole.
"""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt
from steelyard.gateway.upstreams.habits import MODERATIONS
from steelyard.gateway.workloads.asked import (
    Asked,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.classification import SPECIAL_TOKENS, measure_texts
from steelyard.gateway.workloads.list_asked import asked_for_list
from steelyard.gateway.workloads.prompt_size import Measure
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = MODERATIONS


class ModerationFields(msgspec.Struct):
    model: str | None = None
    input: str | list[msgspec.Raw] | None = None


_decoder = msgspec.json.Decoder(ModerationFields)
_text_decoder = msgspec.json.Decoder(str)


def parse_moderation(body: bytes) -> Asked:
    """Read a request for moderation; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    size, count = _measure(typed.input, fields)
    return asked_for_list(
        body,
        fields,
        path=ENDPOINT,
        model=typed.model,
        size=size,
        prompt_fields=("input",),
        answer_field="results",
        item_count=count,
    )


def _measure(
    given: str | list[msgspec.Raw] | None, fields: dict[str, msgspec.Raw]
) -> tuple[PromptSize, int]:
    """The size of the input, and how many results it gets."""
    if isinstance(given, str):
        return measure_texts([given], parameter="input"), 1
    if given and bytes(given[0]).startswith(b"{"):
        measure = Measure()
        measure.add_content(fields["input"], parameter="input")
        if measure.is_empty:
            raise EmptyPrompt("input must have some text", parameter="input")
        extra = measure.extra_tokens + SPECIAL_TOKENS * len(given)
        return PromptSize(measure.text_bytes, 0, 0, extra), 1
    texts = [read_typed(raw, _text_decoder) for raw in given or ()]
    return measure_texts(texts, parameter="input"), len(texts)
