"""The plain door: POST /generate takes a prompt and gives a response, and nothing else."""

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import CHAT
from steelyard.gateway.workloads.answer import PricedUsage
from steelyard.gateway.workloads.asked import (
    Asked,
    Way,
    count_utf8_bytes,
    digest_request,
    read_fields,
    read_limit,
    read_typed,
)
from steelyard.gateway.workloads.chat import single_message
from steelyard.gateway.workloads.openai_answer import OpenAIAnswer
from steelyard.metering.token_bound import PromptSize

ENDPOINT = "/generate"
FIELDS = frozenset(
    {"model", "prompt", "max_new_tokens", "temperature", "top_p", "seed", "return_token_ids"}
)


class GenerateFields(msgspec.Struct):
    prompt: str
    model: str | None = None
    max_new_tokens: int | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _ChatAnswer(msgspec.Struct):
    model: str
    choices: list[_Choice]
    usage: msgspec.Raw
    prompt_token_ids: list[int] | None = None


_decoder = msgspec.json.Decoder(GenerateFields)
_answer_decoder = msgspec.json.Decoder(_ChatAnswer)


def parse_generate(body: bytes) -> Asked:
    """Read a plain request, which is asked as a chat of one message."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    for name in fields:
        if name not in FIELDS:
            raise InvalidRequest(
                f"{name} is not known here; /generate takes {', '.join(sorted(FIELDS))}",
                parameter=name,
            )
    text_bytes = count_utf8_bytes(typed.prompt, parameter="prompt")
    if not text_bytes:
        raise EmptyPrompt("prompt must have some text", parameter="prompt")
    messages = single_message(typed.prompt)
    passed = {name: raw for name, raw in fields.items() if name not in {"prompt", "max_new_tokens"}}
    asked_as_chat = {**passed, "messages": messages}
    way = Way(
        path=CHAT,
        fields=lambda: asked_as_chat,
        open_answer=PlainAnswer,
        prompt_fields=("messages",),
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        size=PromptSize(text_bytes + len("user"), len(typed.prompt.strip().encode()), 1),
        output_tokens_max=read_limit(typed.max_new_tokens, parameter="max_new_tokens"),
        is_streamed=False,
        wants_usage=True,
        request_digest=digest_request(body),
        ways=(way,),
    )


class PlainAnswer(OpenAIAnswer):
    """A chat answer in the shape of this door."""

    def write_whole(self, priced: PricedUsage) -> bytes:
        answer = _answer_decoder.decode(super().write_whole(priced))
        choice = answer.choices[0]
        plain: dict[str, object] = {
            "response": choice.message.content or "",
            "model": answer.model,
            "finish_reason": choice.finish_reason,
            "usage": answer.usage,
        }
        if choice.token_ids is not None:
            plain["token_ids"] = choice.token_ids
            plain["prompt_token_ids"] = answer.prompt_token_ids
        return msgspec.json.encode(plain)
