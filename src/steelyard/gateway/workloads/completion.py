"""Completion: POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

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

ENDPOINT = "/v1/completions"


class CompletionFields(CommonFields):
    prompt: str | list[str | int] | None = None


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
    return Asked(
        endpoint=ENDPOINT,
        upstream_path=ENDPOINT,
        model=typed.model,
        size=PromptSize(prompt_bytes, prompt_bytes, 0),
        prompt_fields={"prompt": fields["prompt"]},
        fields=fields,
        output_tokens_max=typed.output_tokens_max(),
        is_streamed=bool(typed.stream),
        wants_usage=typed.wants_usage(),
        request_digest=digest_request(body),
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
