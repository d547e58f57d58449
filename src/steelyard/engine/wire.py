"""The OpenAI request bodies we accept, with vLLM's additions and `max_prompt_tokens`, our own."""

import re
from typing import Any, Final, TypeVar

import msgspec

from steelyard.engine.refusals import (
    InvalidJson,
    InvalidRequest,
    UnsupportedContent,
    UnsupportedParameter,
)
from steelyard.engine.tokenizer_facts import Message

# OpenAI takes four; editors send more.
STOPS_MAX: Final = 16
CHOICES_MAX: Final = 16
LOGPROBS_MAX: Final = 20
_ROLES: Final = {"developer", "system", "user", "assistant", "tool"}
_FIELD: Final = re.compile(r"`\$\.?([^`]*)`")
_MISSING_FIELD: Final = re.compile(r"required field `([^`]*)`")
_SEED_LIMIT: Final = 2**63
T = TypeVar("T")


class ContentPart(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class WireMessage(msgspec.Struct):
    """One turn of a conversation, as it arrives."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JsonSchema(msgspec.Struct):
    """A schema and its name."""

    schema: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What kind of text the answer must be."""

    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(msgspec.Struct, kw_only=True):
    """The fields that chat and plain completions share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    max_prompt_tokens: int | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    response_format: ResponseFormat | None = None
    best_of: Any = None
    logit_bias: Any = None
    min_tokens: Any = None


class ChatBody(GenerationBody, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[WireMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None


class CompletionBody(GenerationBody, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str | int]
    logprobs: int | None = None
    suffix: str | None = None
    echo: Any = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of /tokenize: either messages or a prompt."""

    model: str | None = None
    messages: list[WireMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None
    suffix: str | None = None


class RequestsBody(msgspec.Struct):
    """The body of /requests: whose lines of the request log are wanted."""

    request_ids: list[str]


# What each unimplemented parameter may say without changing the answer; null always may.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "echo": (False,),
}


def decode_body(body: bytes, kind: type[T]) -> T:
    """Read a request body, or name the field that is wrong."""
    try:
        # Checked apart, because a decoder may accept half of a surrogate pair and let it in.
        body.decode()
        decoded = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), param=_field_of(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not JSON in UTF-8: {error}") from error
    return decoded


def check_generation(body: GenerationBody) -> None:
    """Refuse what is out of range, and what we would have to ignore although it matters."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and not any(_is_same(value, allowed) for allowed in neutral):
            raise UnsupportedParameter(
                f"{name}={msgspec.json.encode(value).decode()} is not supported", param=name
            )
    _check_range("temperature", body.temperature, low=0, high=2)
    _check_range("top_p", body.top_p, low=0, high=1)
    _check_range("top_k", body.top_k, low=-1, high=None)
    _check_range("min_p", body.min_p, low=0, high=1)
    _check_range("n", body.n, low=1, high=CHOICES_MAX)
    _check_range("presence_penalty", body.presence_penalty, low=-2, high=2)
    _check_range("frequency_penalty", body.frequency_penalty, low=-2, high=2)
    _check_range("repetition_penalty", body.repetition_penalty, low=0.01, high=100)
    _check_range("seed", body.seed, low=-_SEED_LIMIT, high=_SEED_LIMIT - 1)
    _check_range("max_tokens", body.max_tokens, low=1, high=None)
    _check_range("max_prompt_tokens", body.max_prompt_tokens, low=0, high=None)
    if isinstance(body, ChatBody):
        _check_range("max_completion_tokens", body.max_completion_tokens, low=1, high=None)
        _check_range("top_logprobs", body.top_logprobs, low=0, high=LOGPROBS_MAX)
        if body.top_logprobs and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    if isinstance(body, CompletionBody):
        _check_range("logprobs", body.logprobs, low=0, high=LOGPROBS_MAX)
    if read_schema(body) is not None and body.ignore_eos:
        raise InvalidRequest("a JSON answer has an end; ignore_eos denies it", param="ignore_eos")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")


def read_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings, at most sixteen and none of them empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > STOPS_MAX:
        raise InvalidRequest(f"stop holds {len(stops)} strings; at most {STOPS_MAX}", param="stop")
    if not all(stops):
        raise InvalidRequest("a stop string must not be empty", param="stop")
    return stops


def read_schema(body: GenerationBody) -> dict[str, Any] | None:
    """The JSON schema that the answer must follow."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.type != "json_schema":
        raise UnsupportedParameter(
            f"response_format of type {wanted.type!r} is not supported", param="response_format"
        )
    if wanted.json_schema is None:
        raise InvalidRequest("json_schema is missing", param="response_format.json_schema")
    return wanted.json_schema.schema


def read_logprobs(body: GenerationBody) -> int | None:
    """How many likeliest tokens to tell of, or None for no log probabilities at all."""
    if isinstance(body, ChatBody):
        return (body.top_logprobs or 0) if body.logprobs else None
    assert isinstance(body, CompletionBody), type(body)
    return body.logprobs


def read_messages(messages: list[WireMessage]) -> list[Message]:
    """The conversation as the chat template wants it, text only."""
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def read_fill_in(prompt: str | list[str | int], suffix: str) -> tuple[str, str]:
    """A beginning, which may be empty at the top of a file, and an end."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0] if isinstance(prompt[0], str) else prompt
    if not isinstance(prompt, str):
        raise InvalidRequest("with a suffix, prompt must be a string", param="prompt")
    return prompt, suffix


def read_prompt(prompt: str | list[str | int], *, vocabulary_size: int) -> str | list[int]:
    """A text, or token ids that the model has."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if isinstance(prompt, str):
        return prompt
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) < len(prompt):
        raise InvalidRequest(
            "prompt must be a string, a list of one string, or a list of token ids", param="prompt"
        )
    if not all(0 <= token_id < vocabulary_size for token_id in token_ids):
        raise InvalidRequest(
            f"prompt holds a token id outside 0..{vocabulary_size - 1}", param="prompt"
        )
    return token_ids


def _read_message(message: WireMessage, where: str) -> Message:
    if message.role not in _ROLES:
        raise InvalidRequest(
            f"role {message.role!r} is none of {', '.join(sorted(_ROLES))}", param=f"{where}.role"
        )
    # OpenAI calls the system role so since its reasoning models; templates know only the old name.
    role = "system" if message.role == "developer" else message.role
    read: Message = {"role": role}
    # A message that calls tools may say nothing besides.
    if message.content is not None or not message.tool_calls:
        read["content"] = _read_content(message.content, f"{where}.content")
    optional = {
        "name": message.name,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
    }
    return read | {key: value for key, value in optional.items() if value is not None}


def _read_content(content: str | list[ContentPart] | None, where: str) -> str:
    if content is None:
        raise InvalidRequest("content must be a string or a list of text parts", param=where)
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise UnsupportedContent(
                f"a part of type {part.type!r} is not supported; this model reads text only",
                param=f"{where}[{i}]",
            )
    return "".join(part.text or "" for part in content)


def _check_range(name: str, value: float | None, *, low: float, high: float | None) -> None:
    if value is None or (low <= value and (high is None or value <= high)):
        return
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    raise InvalidRequest(f"{name} must be {bounds}, not {value}", param=name)


def _is_same(value: Any, allowed: Any) -> bool:
    # In Python True equals 1, but n=true is no number of answers.
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _field_of(message: str) -> str | None:
    path = _FIELD.search(message)
    missing = _MISSING_FIELD.search(message)
    names = [found.group(1) for found in (path, missing) if found is not None]
    return ".".join(name for name in names if name) or None
