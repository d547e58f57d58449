"""Completion: POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from typing import Final

import msgspec

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest
from steelyard.gateway.upstreams.habits import COMPLETIONS
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
from steelyard.metering.token_bound import PromptSize

ENDPOINT: Final = COMPLETIONS


class CompletionFields(CommonFields):
    prompt: str | list[str | int] | None = None
    suffix: str | None = None
    best_of: int | None = None


_decoder = msgspec.json.Decoder(CompletionFields)


def parse_completion(body: bytes) -> Asked:
    """Read a completion request; raises InvalidRequest or one of its kinds."""
    fields = read_fields(body)
    typed = read_typed(body, _decoder)
    prompt = typed.prompt
    if not prompt:
        raise EmptyPrompt("prompt must have some text", parameter="prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and any(isinstance(p, str) for p in prompt):
        raise InvalidRequest("send one prompt a request", parameter="prompt")
    prompt_bytes = _prompt_bytes(prompt)
    suffix_bytes = count_utf8_bytes(typed.suffix or "", parameter="suffix")
    # What best_of throws away was made, and is charged.
    choice_count = read_choice_count(typed.n, typed.best_of, parameter="n")
    way = Way(
        path=COMPLETIONS,
        fields=lambda: fields,
        open_answer=lambda: OpenAIAnswer(choice_count=typed.n or 1),
        prompt_fields=("prompt",),
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        # The marks around prefix and suffix are special tokens of the model's, three of them.
        size=PromptSize(prompt_bytes + suffix_bytes, prompt_bytes, 0, 3 if suffix_bytes else 0),
        output_tokens_max=typed.output_tokens_max(),
        choice_count=choice_count,
        is_streamed=bool(typed.stream),
        wants_usage=typed.wants_usage(),
        request_digest=digest_request(body),
        ways=(way,),
    )


def _prompt_bytes(prompt: str | list[str | int]) -> int:
    """Bytes of text; token ids count one each, since each is a token for certain."""
    parts = [prompt] if isinstance(prompt, str) else prompt
    size = sum(
        count_utf8_bytes(part, parameter="prompt") if isinstance(part, str) else 1 for part in parts
    )
    if not size:
        raise EmptyPrompt("prompt must have some text", parameter="prompt")
    return size
