"""Messages: POST /v1/messages (https://docs.claude.com/en/api/messages)."""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import CHAT, MESSAGES
from steelyard.gateway.workloads.asked import (
    Asked,
    Way,
    count_utf8_bytes,
    digest_request,
    read_fields,
    read_limit,
    read_typed,
)
from steelyard.gateway.workloads.chat_as_messages import ChatAsMessages
from steelyard.gateway.workloads.messages_answer import MessagesAnswer
from steelyard.gateway.workloads.messages_to_chat import chat_fields
from steelyard.gateway.workloads.prompt_size import Measure
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = MESSAGES
PROMPT_FIELDS: Final = ("messages", "system", "tools", "tool_choice", "thinking")


class Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class MessagesFields(msgspec.Struct):
    model: str | None = None
    messages: list[Message] = msgspec.field(default_factory=list[Message])
    system: msgspec.Raw = msgspec.Raw(b"null")
    max_tokens: int | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(MessagesFields)


def parse_messages(body: bytes) -> Asked:
    """Read a request for a message; raises InvalidRequest or one of its kinds."""
    asked = parse_countable_messages(body)
    if asked.output_tokens_max is None:
        raise InvalidRequest("max_tokens: Field required", parameter="max_tokens")
    return asked


def parse_countable_messages(body: bytes) -> Asked:
    """The same, where only the prompt is counted and no limit is needed."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    native = Way(
        path=MESSAGES,
        fields=lambda: fields,
        open_answer=MessagesAnswer,
        prompt_fields=PROMPT_FIELDS,
        takes_stream_options=False,
    )
    translated = Way(
        path=CHAT,
        fields=lambda: chat_fields(body),
        open_answer=lambda: ChatAsMessages(body),
        prompt_fields=("messages", "tools", "tool_choice"),
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=_measure(typed, fields),
        output_tokens_max=read_limit(typed.max_tokens, parameter="max_tokens"),
        is_streamed=bool(typed.stream),
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(native, translated),
    )


def _measure(typed: MessagesFields, fields: dict[str, msgspec.Raw]) -> PromptSize:
    if not typed.messages:
        raise InvalidRequest("messages: at least one message is required", parameter="messages")
    measure = Measure()
    measure.add_content(typed.system, parameter="system")
    kept_bytes = 0
    for message in typed.messages:
        text = measure.add_content(message.content, parameter="messages")
        measure.text_bytes += count_utf8_bytes(message.role, parameter="messages")
        if message.role == "user":
            kept_bytes += count_utf8_bytes(text.strip(), parameter="messages")
    if measure.is_empty:
        raise EmptyPrompt("the messages have no text", parameter="messages")
    measure.add_tools(fields)
    messages = len(typed.messages) + 1
    return PromptSize(measure.text_bytes, kept_bytes, messages, measure.extra_tokens)
