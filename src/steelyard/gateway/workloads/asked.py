"""What was asked, in the few words that the gateway needs; the rest passes through untouched."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from steelyard.gateway.refusals import InvalidJson, InvalidRequest, SurfaceNotServed
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.upstreams.habits import Habits
from steelyard.gateway.workloads.answer import Answer
from steelyard.ids import new_id
from steelyard.metering.token_bound import PromptSize

Fields = Mapping[str, msgspec.Raw]
T = TypeVar("T")
RUNNING_USAGE: Final = {"include_usage": True, "continuous_usage_stats": True}
CHOICES_MAX: Final = 128
NO_BOUNDS: Final[Mapping[str, int]] = MappingProxyType({})
JSON_TYPE: Final = "application/json"

_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Limits(msgspec.Struct, frozen=True):
    """What an upstream may read and write for one request, in tokens; the answer's is of each
    choice."""

    input_tokens_max: int
    output_tokens_max: int


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One protocol in which a request can be put to an upstream, and its answer read.

    `fields` translates only when it is called: most ways are never taken. Work that is not
    `is_bounded_by_tokens` has `bounds` instead, which an upstream gets that keeps to them.
    """

    path: str
    fields: Callable[[], Mapping[str, Any]]
    open_answer: Callable[[], Answer]
    prompt_fields: Sequence[str] = ()
    limit_field: str | None = "max_tokens"
    takes_stream_options: bool = True
    is_bounded_by_tokens: bool = True
    bounds: Mapping[str, int] = NO_BOUNDS
    write: Callable[[Mapping[str, Any]], bytes] = msgspec.json.encode
    content_type: str = JSON_TYPE
    # What a whole answer is, as the client gets it.
    answer_type: str = JSON_TYPE

    def prepared(self) -> "Way":
        """The same way, translated once, and before anything is held: it may refuse."""
        fields = self.fields()
        return replace(self, fields=lambda: fields)

    def upstream_body(
        self, *, model: str, is_streamed: bool, limits: Limits, habits: Habits, tenant: str
    ) -> bytes:
        """The request as the upstream gets it: bounded by what is held, usage always asked for."""
        body: dict[str, Any] = {**self.fields(), "model": model}
        if not self.is_bounded_by_tokens:
            return self.write({**body, **self.bounds} if habits.takes_prompt_bound else body)
        if self.limit_field is not None:
            body.pop("max_completion_tokens", None)
            body.pop("max_tokens", None)
            body[habits.limit_fields.get(self.path, self.limit_field)] = limits.output_tokens_max
        if habits.takes_prompt_bound:
            body["max_prompt_tokens"] = limits.input_tokens_max
        if habits.knows_tenants:
            body["cache_salt"] = _salt_within(tenant, body.get("cache_salt"))
        if self.takes_stream_options:
            body.pop("stream_options", None)
            if is_streamed:
                body["stream_options"] = (
                    RUNNING_USAGE if habits.has_running_usage else {"include_usage": True}
                )
        return self.write(body)

    def count_body(self, *, model: str) -> bytes:
        """What the upstream needs to count the prompt's tokens."""
        fields = self.fields()
        chosen = {name: fields[name] for name in self.prompt_fields if name in fields}
        return msgspec.json.encode({**chosen, "model": model})


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request, whichever door it came through; the ways to ask it, the best one first.

    `output_tokens_max` is the limit on each choice; of work without output there are no choices.
    `counts_max` is the most that it counts, by meter, where that does not follow from its text.
    """

    endpoint: str
    model: str | None
    size: PromptSize
    output_tokens_max: int | None
    is_streamed: bool
    wants_usage: bool
    request_digest: str
    ways: Sequence[Way]
    choice_count: int = 1
    # What is counted one by one, such as texts that are classified.
    item_count: int = 0
    # The batch that it is a line of, and how its attempts are called: after their line.
    batch_id: str | None = None
    new_attempt_id: Callable[[], str] = new_id
    # The client can ask for the answer again (Idempotency-Key): it is kept.
    is_repeatable: bool = False
    # What the client says of the answer cache, in the words of `Cache-Control`.
    cache_control: str | None = None
    counts_max: Mapping[str, int] | None = None
    # Who is to bear the cost, by weight, where that is not who pays: departments by id.
    split: Mapping[str, int] | None = None
    # What is set aside for the run that it is part of, as a whole.
    run_lease: RunLease | None = None
    # Gets the event's id and a whole answer before the event is written, to keep it.
    keep: Callable[[str, bytes], Awaitable[None]] | None = None

    def way_over(self, paths: frozenset[str]) -> Way:
        """The best way over what an upstream serves; raises SurfaceNotServed."""
        for way in self.ways:
            if way.path in paths:
                return way.prepared()
        raise SurfaceNotServed(
            f"the model {self.model!r} is not served at {self.endpoint}; "
            f"its server takes {', '.join(sorted(paths))}"
        )


def _salt_within(tenant: str, given: Any) -> Any:
    """What keeps cached prompts apart: those of other tenants always, and of their own those that
    they want apart. What is no salt stays as it is, for the upstream to refuse."""
    try:
        own = msgspec.convert(
            msgspec.json.decode(given) if isinstance(given, msgspec.Raw) else given, str | None
        )
    except msgspec.ValidationError:
        return given
    return tenant if own is None else f"{tenant}/{own}"


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class CommonFields(msgspec.Struct):
    """The fields that every text endpoint of OpenAI's shares."""

    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None

    def output_tokens_max(self) -> int | None:
        """The limit on each choice that the client set, if it set one."""
        if self.max_completion_tokens is not None:
            return read_limit(self.max_completion_tokens, parameter="max_completion_tokens")
        return read_limit(self.max_tokens, parameter="max_tokens")

    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def read_limit(limit: int | None, *, parameter: str) -> int | None:
    """A limit as it was set, if it was; raises InvalidRequest for one below 1."""
    if limit is not None and limit < 1:
        message = f"{parameter} must be at least 1, got {limit}"
        raise InvalidRequest(message, parameter=parameter)
    return limit


def read_choice_count(*counts: int | None, parameter: str) -> int:
    """How many answers are made at most; raises InvalidRequest."""
    most = max(count if count is not None else 1 for count in counts)
    if not 1 <= most <= CHOICES_MAX:
        message = f"{parameter} must be from 1 to {CHOICES_MAX}, got {most}"
        raise InvalidRequest(message, parameter=parameter)
    return most


def read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, undecoded; raises InvalidJson."""
    try:
        return _fields_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not a JSON object: {error}") from error


def read_typed(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T:
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
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "the text has half of a surrogate pair, which is no character", parameter=parameter
        ) from error


def _parameter_of(error: msgspec.ValidationError) -> str | None:
    _, _, path = str(error).partition("at `$.")
    return path.rstrip("`") or None
