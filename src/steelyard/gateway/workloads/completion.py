"""Completion: POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

from collections.abc import Mapping
from typing import Any, Final

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
MARKS: Final = 3


class Segments(msgspec.Struct):
    """What Tabby's editors send instead of prompt and suffix."""

    prefix: str = ""
    suffix: str | None = None


class CompletionFields(CommonFields):
    prompt: str | list[str | int] | None = None
    suffix: str | None = None
    best_of: int | None = None
    segments: Segments | None = None


_decoder = msgspec.json.Decoder(CompletionFields)


def parse_completion(body: bytes) -> Asked:
    """Read a completion request; raises InvalidRequest or one of its kinds."""
    typed = read_typed(body, _decoder)
    fields, prompt, suffix = _read_prompt(read_fields(body), typed)
    if isinstance(prompt, list) and len(prompt) > 1 and any(isinstance(p, str) for p in prompt):
        raise InvalidRequest("send one prompt a request", parameter="prompt")
    suffix_bytes = count_utf8_bytes(suffix or "", parameter="suffix")
    prompt_bytes = _prompt_bytes(prompt or "")
    # At the top of a file there is nothing before what is to be filled in.
    if not prompt_bytes + suffix_bytes:
        raise EmptyPrompt("prompt must have some text", parameter="prompt")
    # What best_of throws away was made, and is charged.
    choice_count = read_choice_count(typed.n, typed.best_of, parameter="n")
    way = Way(
        path=COMPLETIONS,
        fields=lambda: fields,
        open_answer=lambda: OpenAIAnswer(choice_count=typed.n or 1),
        prompt_fields=("prompt", "suffix"),
    )
    return Asked(
        endpoint=ENDPOINT,
        model=typed.model,
        # The marks around prefix and suffix are special tokens of the model's; who counts the
        # prompt counts them, too.
        size=PromptSize(
            prompt_bytes + suffix_bytes + (MARKS if suffix_bytes else 0), prompt_bytes, 0
        ),
        output_tokens_max=typed.output_tokens_max(),
        choice_count=choice_count,
        is_streamed=bool(typed.stream),
        wants_usage=typed.wants_usage(),
        request_digest=digest_request(body),
        ways=(way,),
    )


def _read_prompt(
    fields: dict[str, msgspec.Raw], typed: CompletionFields
) -> tuple[Mapping[str, Any], str | list[str | int] | None, str | None]:
    """The fields for the upstream, with prompt and suffix; of an editor's segments they are made."""
    given = typed.segments
    if given is None:
        return fields, typed.prompt, typed.suffix
    if typed.prompt is not None or typed.suffix is not None:
        raise InvalidRequest("send segments, or prompt and suffix", parameter="segments")
    others = {name: raw for name, raw in fields.items() if name not in {"segments", "language"}}
    made: dict[str, Any] = {**others, "prompt": given.prefix}
    if given.suffix:
        made["suffix"] = given.suffix
    return made, given.prefix, given.suffix


def _prompt_bytes(prompt: str | list[str | int]) -> int:
    """Bytes of text; token ids count one each, since each is a token for certain."""
    parts = [prompt] if isinstance(prompt, str) else prompt
    return sum(
        count_utf8_bytes(part, parameter="prompt") if isinstance(part, str) else 1 for part in parts
    )
