"""What the gateway needs from whatever answers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from steelyard.errors import Failure
from steelyard.gateway.upstreams.habits import Habits
from steelyard.metering.token_bound import TokenizerFacts
from steelyard.metering.usage_event import CountSource


class UpstreamUnavailable(Failure):
    """The model's server does not answer. Try again in a moment."""

    code = "upstream_unavailable"


class UpstreamFailed(Failure):
    """The model's server broke off."""

    code = "upstream_failed"


class UpstreamTimedOut(UpstreamFailed):
    """The model's server took too long."""

    code = "upstream_timed_out"


class UpstreamKeyRefused(UpstreamFailed):
    """The model's server does not take the key that we have for it."""

    code = "upstream_key_refused"


class CircuitOpen(UpstreamUnavailable):
    """Every server of this model has failed several times in a row, and rests."""

    code = "circuit_open"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase may take; the total is of the whole answer, and may be without limit."""

    connect_s: float
    first_token_s: float
    between_tokens_s: float
    total_s: float | None = None

    @property
    def silence_s(self) -> float:
        """The longest silence of any kind; all that can be said of an answer that comes whole."""
        return max(self.first_token_s, self.between_tokens_s)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as its upstream lists it, with what it tells of it."""

    id: str
    context_tokens_max: int | None = None
    tokenizer: TokenizerFacts | None = None
    has_chat_template: bool = True
    paths: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as it is served: by its own name, on one upstream; the context is in tokens.

    `paths` is what this model can do, where it is not all that its upstream can.
    """

    id: str
    upstream: str
    context_tokens_max: int
    has_chat_template: bool
    tokenizer: TokenizerFacts
    paths: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """A whole answer, as it came."""

    status: int
    body: bytes
    retry_after: str | None = None


class LoggedAttempt(NamedTuple):
    """What an upstream's own log says of an attempt; `usage` is a usage block."""

    usage: bytes
    count_source: CountSource


@dataclass(frozen=True, slots=True)
class LoggedAttempts:
    """What an upstream's own log knows of some attempts; of those that are not in it, nothing.

    Of those that it is still at work on, it can tell later.
    """

    known: Mapping[str, LoggedAttempt]
    running: Sequence[str] = ()


class UpstreamStream(Protocol):
    """An answer that comes in pieces."""

    @property
    def status(self) -> int: ...

    async def refusal(self) -> UpstreamAnswer:
        """The whole answer, where the status is not 200; raises UpstreamFailed."""
        ...

    def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        """The data of each server-sent event, those together that came together, never none;
        raises UpstreamFailed when it breaks off."""
        ...


class Upstream(Protocol):
    """Something that answers requests and says what they used."""

    name: str
    count_source: CountSource
    habits: Habits

    async def models(self) -> list[ListedModel]:
        """What it serves now; raises UpstreamUnavailable or UpstreamFailed."""
        ...

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        """Exactly as many tokens as the model would see, asked at this path; raises
        UpstreamUnavailable or UpstreamFailed. Only for habits that say where it counts."""
        ...

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        """Work for a tenant, of whom only an opaque name is told; raises UpstreamUnavailable or
        UpstreamFailed."""
        ...

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        """What became of requests whose gateway died, as far as the upstream's own log knows of
        them. Raises UpstreamUnavailable while it cannot say, UpstreamFailed on nonsense."""
        ...

    def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AbstractAsyncContextManager[UpstreamStream]:
        """Leaving the context before the end cancels the work upstream."""
        ...
