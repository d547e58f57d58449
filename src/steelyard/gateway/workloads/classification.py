"""Classification: POST /v1/classifications takes a text or a list of texts and gives each its label.

Each text is one item.
"""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import CLASSIFICATIONS
from steelyard.gateway.workloads.asked import (
    Asked,
    count_utf8_bytes,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.list_asked import asked_for_list
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = CLASSIFICATIONS
ITEMS_MAX: Final = 2_048
# What a tokenizer of this kind of model puts around each text.
SPECIAL_TOKENS: Final = 2


class ClassificationFields(msgspec.Struct):
    model: str | None = None
    input: str | list[str] | None = None


_decoder = msgspec.json.Decoder(ClassificationFields)


def parse_classification(body: bytes) -> Asked:
    """Read a request for labels; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    texts = [typed.input] if isinstance(typed.input, str) else typed.input or []
    size = measure_texts(texts, parameter="input")
    return asked_for_list(
        body,
        fields,
        path=ENDPOINT,
        model=typed.model,
        size=size,
        prompt_fields=("input",),
        answer_field="data",
        item_count=len(texts),
    )


def measure_texts(texts: list[str], *, parameter: str) -> PromptSize:
    """The size of texts that are read one by one; raises EmptyPrompt or InvalidRequest."""
    check_item_count(len(texts), parameter=parameter)
    sizes = [count_utf8_bytes(text, parameter=parameter) for text in texts]
    if not all(sizes):
        raise EmptyPrompt(f"{parameter} has a text without a character", parameter=parameter)
    return PromptSize(sum(sizes), sum(sizes), 0, SPECIAL_TOKENS * len(sizes))


def check_item_count(count: int, *, parameter: str) -> None:
    if not count:
        raise EmptyPrompt(f"{parameter} must have some text", parameter=parameter)
    if count > ITEMS_MAX:
        message = f"{parameter} has {count} entries; at most {ITEMS_MAX} are taken at once"
        raise InvalidRequest(message, parameter=parameter)
