"""Chat: POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import CHAT
from steelyard.gateway.workloads.asked import (
    Asked,
    CommonFields,
    Way,
    count_utf8_bytes,
    digest_request,
    read_choice_count,
    read_fields,
    read_typed,
)
from steelyard.gateway.workloads.openai_answer import OpenAIAnswer
from steelyard.gateway.workloads.prompt_size import Measure
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = CHAT
PROMPT_FIELDS: Final = ("messages", "tools", "tool_choice", "chat_template_kwargs")
# A plain message has no more JSON around its text than this.
PLAIN_MESSAGE_BYTES: Final = 64

RawMessage = dict[str, msgspec.Raw]


class Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")
    name: str | None = None


class ChatFields(CommonFields):
    messages: list[Message] = msgspec.field(default_factory=list[Message])


_decoder = msgspec.json.Decoder(ChatFields)
_raw_messages_decoder = msgspec.json.Decoder(list[RawMessage])


def parse_chat(body: bytes) -> Asked:
    """Read a chat request; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    choice_count = read_choice_count(typed.n, parameter="n")
    way = Way(
        path=CHAT,
        fields=lambda: fields,
        open_answer=lambda: OpenAIAnswer(choice_count=choice_count),
        prompt_fields=PROMPT_FIELDS,
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=measure_chat(typed.messages, fields),
        output_tokens_max=typed.output_tokens_max(),
        choice_count=choice_count,
        is_streamed=bool(typed.stream),
        wants_usage=typed.wants_usage(),
        request_digest=digest_request(body),
        ways=(way,),
    )


def single_message(prompt: str) -> list[dict[str, Any]]:
    """A prompt as the chat that asks it."""
    return [{"role": "user", "content": prompt}]


def measure_chat(messages: list[Message], fields: Mapping[str, msgspec.Raw]) -> PromptSize:
    """How large a chat is; raises EmptyPrompt where nothing is asked."""
    if not messages:
        raise InvalidRequest("messages must have at least one message", parameter="messages")
    measure = Measure()
    kept_bytes = known_bytes = 0
    for message in messages:
        text = measure.add_content(message.content, parameter="messages")
        label = count_utf8_bytes(message.role + (message.name or ""), parameter="messages")
        measure.text_bytes += label
        known_bytes += len(message.content) + label + PLAIN_MESSAGE_BYTES
        if message.role == "user":
            kept_bytes += count_utf8_bytes(text.strip(), parameter="messages")
    if len(fields["messages"]) > known_bytes:
        _add_other_fields(fields["messages"], measure)
    # A message without content still has a role, but no prompt is made of roles alone.
    if measure.is_empty:
        raise EmptyPrompt("the messages have no text", parameter="messages")
    measure.add_tools(fields)
    return PromptSize(measure.text_bytes, kept_bytes, len(messages), measure.extra_tokens)


def _add_other_fields(raw: msgspec.Raw, measure: Measure) -> None:
    """Calls of tools, their results' names, reasoning that is sent back, and whatever else."""
    for message in read_typed(raw, _raw_messages_decoder):
        for name, value in message.items():
            if name not in {"role", "content", "name"}:
                measure.add_unknown(value)
                measure.content_bytes += len(value)
