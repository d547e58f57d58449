"""What was asked, in the few words that the gateway needs; the rest passes through untouched."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from steelyard.gateway.refusals import InvalidJson, InvalidRequest
from steelyard.metering.token_bound import PromptSize

Fields = Mapping[str, msgspec.Raw]
T = TypeVar("T")

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for text, whichever door it came through.

    `prompt_fields` are those that the upstream needs to count the prompt's tokens.
    """

    endpoint: str
    upstream_path: str
    model: str | None
    size: PromptSize
    prompt_fields: Mapping[str, Any]
    fields: Mapping[str, Any]
    output_tokens_max: int | None
    is_streamed: bool
    wants_usage: bool
    request_digest: str
    # The client can ask for the answer again (Idempotency-Key): it is kept.
    is_repeatable: bool = False

    def upstream_body(self, *, model: str, input_tokens_max: int, output_tokens_max: int) -> bytes:
        """The request as the upstream gets it: bounded by what is held, usage always asked for."""
        bounded: dict[str, Any] = {
            **self.fields,
            "model": model,
            "max_tokens": output_tokens_max,
            "max_prompt_tokens": input_tokens_max,
        }
        bounded.pop("max_completion_tokens", None)
        bounded.pop("stream_options", None)
        if self.is_streamed:
            bounded["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return msgspec.json.encode(bounded)

    def count_body(self, *, model: str) -> bytes:
        return msgspec.json.encode({**self.prompt_fields, "model": model})


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class CommonFields(msgspec.Struct):
    """The fields that every text endpoint shares."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def output_tokens_max(self) -> int | None:
        """The limit on the answer that the client set, if it set one."""
        name = "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"
        limit = getattr(self, name)
        if limit is not None and limit < 1:
            raise InvalidRequest(f"{name} must be at least 1, got {limit}", parameter=name)
        return limit

    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, undecoded; raises InvalidJson."""
    try:
        return _fields_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not a JSON object: {error}") from error


def read_typed(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The fields that a workload looks at; raises InvalidRequest with the field's name."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), parameter=_parameter_of(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not JSON: {error}") from error


def digest_request(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def count_utf8_bytes(text: str, *, parameter: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "the text has half of a surrogate pair, which is no character", parameter=parameter
        ) from error


def _parameter_of(error: msgspec.ValidationError) -> str | None:
    _, _, path = str(error).partition("at `$.")
    return path.rstrip("`") or None
