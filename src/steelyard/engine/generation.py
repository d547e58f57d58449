"""From a request body to a sequence: tokenizing, the limits, and the model's own defaults."""

from functools import partial
from typing import Final

import anyio
from anyio import CapacityLimiter

from steelyard.engine.answers import AnswerShape
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.refusals import (
    ContextLengthExceeded,
    InvalidRequest,
    PromptOverBound,
)
from steelyard.engine.sampler import Sampling
from steelyard.engine.sequence import SequenceRequest
from steelyard.engine.wire import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    StreamOptions,
    TokenizeBody,
    read_fill_in,
    read_logprobs,
    read_messages,
    read_prompt,
    read_schema,
    read_stops,
)

# The number the OpenAI completions API has when max_tokens is not given.
COMPLETION_MAX_TOKENS_DEFAULT: Final = 16


async def tokenize_body(
    body: ChatBody | CompletionBody | TokenizeBody,
    model: LoadedModel,
    *,
    limiter: CapacityLimiter,
) -> list[int]:
    """The exact ids the model is fed, worked out off the event loop."""
    messages = getattr(body, "messages", None)
    if messages is not None:
        tools = getattr(body, "tools", None)
        call = partial(model.encode_messages, read_messages(messages), tools=tools)
        return await anyio.to_thread.run_sync(call, limiter=limiter)
    prompt = getattr(body, "prompt", None)
    if prompt is None:
        raise InvalidRequest("give either messages or prompt", param="messages")
    suffix = getattr(body, "suffix", None)
    if suffix:
        fill_in = partial(model.encode_fill_in, *read_fill_in(prompt, suffix))
        return await anyio.to_thread.run_sync(fill_in, limiter=limiter)
    text = read_prompt(prompt, vocabulary_size=model.vocabulary_size)
    if isinstance(text, list):
        return text
    return await anyio.to_thread.run_sync(partial(model.encode_text, text), limiter=limiter)


def make_sequence_requests(
    body: ChatBody | CompletionBody,
    model: LoadedModel,
    *,
    prompt_token_ids: list[int],
    request_id: str,
    max_model_len: int,
    fairness_key: str = "",
) -> list[SequenceRequest]:
    """Check the body against the model's limits, and fill in what it does not say."""
    _check_prompt(body, len(prompt_token_ids), max_model_len=max_model_len)
    room = max_model_len - len(prompt_token_ids)
    schema = read_schema(body)
    return [
        SequenceRequest(
            request_id=request_id,
            index=index,
            prompt_token_ids=prompt_token_ids,
            max_tokens=min(_max_tokens(body, room), room),
            sampling=_sampling(body, model, index=index),
            stop=read_stops(body.stop),
            ignore_eos=bool(body.ignore_eos),
            fairness_key=fairness_key,
            cache_salt=body.cache_salt or "",
            grammar=None if schema is None else model.make_grammar(schema),
        )
        for index in range(body.n or 1)
    ]


def make_answer_shape(
    body: ChatBody | CompletionBody,
    request: SequenceRequest,
    *,
    model: LoadedModel,
    created: int,
    device_kind: str,
) -> AnswerShape:
    """What the answer must show."""
    options = body.stream_options or StreamOptions()
    running = bool(options.continuous_usage_stats)
    return AnswerShape(
        request_id=request.request_id,
        model=body.model,
        created=created,
        is_chat=isinstance(body, ChatBody),
        prompt_token_ids=request.prompt_token_ids,
        read_token=model.read_token,
        device_kind=device_kind,
        with_logprobs=read_logprobs(body) is not None,
        with_token_ids=bool(body.return_token_ids),
        with_usage=bool(options.include_usage),
        with_running_usage=running,
    )


def _check_prompt(body: GenerationBody, prompt_tokens: int, *, max_model_len: int) -> None:
    bound = body.max_prompt_tokens
    if bound is not None and prompt_tokens > bound:
        raise PromptOverBound(
            f"the prompt has {prompt_tokens} tokens, more than max_prompt_tokens={bound}",
            param="max_prompt_tokens",
            prompt_tokens=prompt_tokens,
            max_prompt_tokens=bound,
        )
    if prompt_tokens == 0:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    if prompt_tokens + 1 > max_model_len:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens; this model's context is {max_model_len}, "
            "and the answer needs at least one",
            param="messages" if isinstance(body, ChatBody) else "prompt",
            prompt_tokens=prompt_tokens,
            max_model_len=max_model_len,
        )


def _max_tokens(body: ChatBody | CompletionBody, room: int) -> int:
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    if body.max_tokens is not None:
        return body.max_tokens
    return room if isinstance(body, ChatBody) else COMPLETION_MAX_TOKENS_DEFAULT


def _sampling(body: GenerationBody, model: LoadedModel, *, index: int) -> Sampling:
    defaults = model.defaults
    top_k = defaults.top_k if body.top_k is None else body.top_k
    return Sampling(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=max(top_k, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_otherwise(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        # Several answers to one prompt must not be the same one.
        seed=None if body.seed is None else body.seed + index,
        logprobs=read_logprobs(body),
    )


def _otherwise(value: float | None, default: float) -> float:
    return default if value is None else value
