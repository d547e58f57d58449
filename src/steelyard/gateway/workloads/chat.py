"""Chat: POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

from typing import Any

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.workloads.asked import (
    Asked,
    CommonFields,
    count_utf8_bytes,
    digest_request,
    read_fields,
    read_typed,
)
from steelyard.metering.token_bound import PromptSize

ENDPOINT = "/v1/chat/completions"


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None


class ChatFields(CommonFields):
    messages: list[Message] = msgspec.field(default_factory=list[Message])


_decoder = msgspec.json.Decoder(ChatFields)


def parse_chat(body: bytes) -> Asked:
    """Read a chat request; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    if not typed.messages:
        raise InvalidRequest("messages must have at least one message", parameter="messages")
    return Asked(
        endpoint=ENDPOINT,
        upstream_path=ENDPOINT,
        model=typed.model,
        size=_size(typed.messages),
        prompt_fields={"messages": fields["messages"]},
        fields=fields,
        output_tokens_max=typed.output_tokens_max(),
        is_streamed=bool(typed.stream),
        wants_usage=typed.wants_usage(),
        request_digest=digest_request(body),
    )


def single_message(prompt: str) -> list[dict[str, Any]]:
    """A prompt as the chat that asks it."""
    return [{"role": "user", "content": prompt}]


def _size(messages: list[Message]) -> PromptSize:
    text_bytes = kept_bytes = content_bytes = 0
    for message in messages:
        content = _content(message)
        size = count_utf8_bytes(content, parameter="messages")
        label = count_utf8_bytes(message.role + (message.name or ""), parameter="messages")
        content_bytes += size
        text_bytes += size + label
        if message.role == "user":
            kept_bytes += count_utf8_bytes(content.strip(), parameter="messages")
    # A message without content still has a role, but no prompt is made of roles alone.
    if not content_bytes:
        raise EmptyPrompt("the messages have no text", parameter="messages")
    return PromptSize(text_bytes, kept_bytes, len(messages))


def _content(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text or "" for part in message.content or ())
