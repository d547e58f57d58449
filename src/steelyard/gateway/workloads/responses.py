"""Responses: POST /v1/responses (https://platform.openai.com/docs/api-reference/responses)."""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import CHAT, RESPONSES
from steelyard.gateway.workloads.asked import (
    Asked,
    Way,
    digest_request,
    read_fields,
    read_limit,
    read_typed,
)
from steelyard.gateway.workloads.chat_as_response import ChatAsResponse
from steelyard.gateway.workloads.prompt_size import Measure
from steelyard.gateway.workloads.responses_answer import ResponsesAnswer
from steelyard.gateway.workloads.responses_to_chat import chat_fields
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = RESPONSES
# What they name lies on a server, unseen: no bound on the prompt could be given, and a key of one
# tenant could reach into the conversation of another.
REFUSED: Final = ("previous_response_id", "conversation", "prompt", "background")

Item = dict[str, msgspec.Raw]


class ResponsesFields(msgspec.Struct):
    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(ResponsesFields)


def parse_response(body: bytes) -> Asked:
    """Read a request for a response; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    for name in REFUSED:
        if bytes(fields.get(name, b"null")) not in {b"null", b"false"}:
            raise InvalidRequest(
                f"{name} is not taken here; send the whole conversation as input", parameter=name
            )
    native = Way(
        path=RESPONSES,
        fields=lambda: fields,
        open_answer=ResponsesAnswer,
        prompt_fields=("input", "instructions", "tools"),
        limit_field="max_output_tokens",
        takes_stream_options=False,
    )
    translated = Way(
        path=CHAT,
        fields=lambda: chat_fields(body),
        open_answer=lambda: ChatAsResponse(body),
        prompt_fields=("messages", "tools", "tool_choice"),
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=_measure(typed, fields),
        output_tokens_max=read_limit(typed.max_output_tokens, parameter="max_output_tokens"),
        is_streamed=bool(typed.stream),
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(native, translated),
    )


def _measure(typed: ResponsesFields, fields: dict[str, msgspec.Raw]) -> PromptSize:
    measure = Measure()
    if typed.instructions:
        measure.add_text(typed.instructions, parameter="instructions")
    kept_bytes, count = 0, 2
    if isinstance(typed.input, str):
        measure.add_text(typed.input, parameter="input")
        kept_bytes = len(typed.input.strip().encode())
    else:
        for item in typed.input or ():
            text = _measure_item(item, measure)
            count += 1
            if bytes(item.get("role", b"")) == b'"user"':
                kept_bytes += len(text.strip().encode())
    if measure.is_empty:
        raise EmptyPrompt("the input has no text", parameter="input")
    measure.add_tools(fields)
    return PromptSize(measure.text_bytes, kept_bytes, count, measure.extra_tokens)


def _measure_item(item: Item, measure: Measure) -> str:
    """A message's text; of other items every byte counts."""
    text = ""
    for name, raw in item.items():
        if name in {"content", "output"}:
            text += measure.add_content(raw, parameter="input")
        else:
            measure.add_unknown(raw)
    return text
