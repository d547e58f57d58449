"""Any server that speaks OpenAI's or Anthropic's protocol over HTTP: our engine, vLLM and others."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import aiohttp
import msgspec

from steelyard.gateway.event_stream import EventStreamReader, EventTooLong
from steelyard.gateway.upstreams.base import (
    ListedModel,
    LoggedAttempt,
    LoggedAttempts,
    Timeouts,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamTimedOut,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import Habits
from steelyard.metering.token_bound import TokenizerFacts
from steelyard.metering.usage_event import CountSource

ANSWER_BYTES_MAX = 64 * 1024 * 1024
LOG_PATH = "/requests"
# Calls that are no work: lists of models, and counts.
CALL_TIMEOUT_S = 15.0


class _Tokenizer(msgspec.Struct):
    tokenizer_sha256: str
    byte_level: bool
    bytes_per_token_max: int
    template_tokens_base: int
    template_tokens_per_message: int
    special_tokens_added: int = 1
    has_chat_template: bool = True
    paths: frozenset[str] | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    steelyard: _Tokenizer | None = None


class _Models(msgspec.Struct):
    data: list[_Model] | None = None


class _Count(msgspec.Struct):
    """A count as our engine and vLLM give it, or as Anthropic does."""

    count: int | None = None
    input_tokens: int | None = None


class _LoggedAnswer(msgspec.Struct, gc=False):
    cached_tokens: int = 0
    engine_us: int = 0
    device_us: int = 0
    device: Literal["gpu", "cpu"] | None = None


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int


class _LoggedTime(msgspec.Struct, gc=False):
    engine_us: int
    device_us: int
    device: Literal["gpu", "cpu"]


class _LoggedUsage(msgspec.Struct, gc=False, omit_defaults=True):
    """The usage block that the engine would have sent."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens
    engine: _LoggedTime | None = None


class _Logged(msgspec.Struct, gc=False):
    """What the engine's request log says of a request."""

    request_id: str
    state: Literal["running", "ended", "lost"]
    prompt_tokens: int
    completion_tokens: int
    answers: list[_LoggedAnswer] = []

    @property
    def is_told(self) -> bool:
        """Not of one that is at work, nor of one that was lost with the engine itself before
        anything of it was counted."""
        return self.state != "running" and self.prompt_tokens > 0

    def as_usage(self) -> _LoggedUsage:
        """The same as a usage block; answers to one prompt share what was cached of it."""
        cached = engine_us = device_us = 0
        device: Literal["gpu", "cpu"] | None = None
        for answer in self.answers:
            cached = max(cached, answer.cached_tokens)
            engine_us += answer.engine_us
            device_us += answer.device_us
            device = answer.device or device
        return _LoggedUsage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            _CachedTokens(min(cached, self.prompt_tokens)),
            _LoggedTime(engine_us, device_us, device) if device else None,
        )


class _LoggedRequests(msgspec.Struct, gc=False):
    requests: list[_Logged]


_encoder = msgspec.json.Encoder()
_logged_decoder = msgspec.json.Decoder(_LoggedRequests)


class OpenAIHttpUpstream:
    """Implements Upstream over one pool of connections."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        count_source: CountSource,
        habits: Habits,
        timeouts: Timeouts,
        connections_max: int,
        api_url: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.count_source: CountSource = count_source
        self.habits = habits
        # How many requests are open on it: it is closed when there are none.
        self.open_count = 0
        self._root = url.rstrip("/")
        self._api_url = (api_url or f"{self._root}/v1").rstrip("/")
        self._query = query
        # A server must not compress what we pass on as it comes.
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._timeouts = timeouts
        self._connections_max = connections_max
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "OpenAIHttpUpstream":
        timeouts = self._timeouts
        connector = aiohttp.TCPConnector(limit=self._connections_max, keepalive_timeout=30)
        self._client = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.silence_s
            ),
            headers=self._headers,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._client is not None, "left without being entered"
        await self._client.close()

    async def models(self) -> list[ListedModel]:
        answer = await self._look("GET", "/v1/models", None)
        if answer.status in {404, 405}:
            # It is there, and keeps no list.
            return []
        _expect_good(answer, self.name, "/v1/models")
        try:
            listed = msgspec.json.decode(answer.body, type=_Models)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(f"{self.name} lists its models in a way we cannot read") from error
        return [_listed(model) for model in listed.data or ()]

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        assert self.habits.counts_at is not None, f"{self.name} counts nowhere"
        at = "/tokenize" if self.habits.counts_at == "tokenize" else f"{path}/count_tokens"
        answer = await self._look("POST", at, body)
        _expect_good(answer, self.name, at)
        try:
            counted = msgspec.json.decode(answer.body, type=_Count)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(f"{self.name} counts in a way we cannot read") from error
        count = counted.input_tokens if counted.count is None else counted.count
        if count is None or count < 0:
            raise UpstreamFailed(f"{self.name} was asked to count, and gave no count")
        return count

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        try:
            async with (
                asyncio.timeout(self._timeouts.total_s),
                self._request(
                    "POST", path, body, request_id, tenant=tenant, content_type=content_type
                ) as response,
            ):
                return await _read(response)
        except TimeoutError as error:
            raise self._too_slow("whole answer", self._timeouts.total_s) from error

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        if not self.habits.has_request_log:
            return LoggedAttempts({})
        body = msgspec.json.encode({"request_ids": request_ids})
        async with self._request("POST", LOG_PATH, body, None) as response:
            answer = await _read(response)
        if answer.status in {404, 405}:
            # A server that keeps no log knows of nothing.
            return LoggedAttempts({})
        _expect_good(answer, self.name, LOG_PATH)
        try:
            logged = _logged_decoder.decode(answer.body).requests
        except msgspec.DecodeError as error:
            raise UpstreamFailed(
                f"{self.name} tells of requests in a way we cannot read"
            ) from error
        return LoggedAttempts(
            {one.request_id: self._logged(one) for one in logged if one.is_told},
            [one.request_id for one in logged if one.state == "running"],
        )

    def _logged(self, logged: "_Logged") -> LoggedAttempt:
        return LoggedAttempt(_encoder.encode(logged.as_usage()), self.count_source)

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> AsyncGenerator["_Stream"]:
        timeouts, began_s = self._timeouts, asyncio.get_running_loop().time()
        ends_s = None if timeouts.total_s is None else began_s + timeouts.total_s
        pace = _Pace(self.name, timeouts, began_s + timeouts.first_token_s, ends_s)
        async with self._request(
            "POST",
            path,
            body,
            request_id,
            tenant=tenant,
            content_type=content_type,
            answers_by_s=pace.deadline_s,
        ) as response:
            yield _Stream(response, pace)

    async def _look(self, method: str, path: str, body: bytes | None) -> UpstreamAnswer:
        """A call that is no work."""
        try:
            async with (
                asyncio.timeout(CALL_TIMEOUT_S),
                self._request(method, path, body, None) as response,
            ):
                return await _read(response)
        except TimeoutError as error:
            raise UpstreamUnavailable(f"{self.name} does not answer {path}") from error

    def _too_slow(self, what: str, limit_s: float | None) -> UpstreamTimedOut:
        return UpstreamTimedOut(f"{self.name} took longer than {limit_s} s for the {what}")

    def _address(self, path: str) -> str:
        """The paths of the API are behind its own URL, all others at the root."""
        if path.startswith("/v1/"):
            return self._api_url + path.removeprefix("/v1") + self._query
        return self._root + path + self._query

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        request_id: str | None,
        *,
        tenant: str | None = None,
        content_type: str = "application/json",
        answers_by_s: float | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        assert self._client is not None, "used without being entered"
        headers = {"Content-Type": content_type}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        if tenant is not None and self.habits.knows_tenants:
            headers["X-Fairness-Key"] = tenant
        self.open_count += 1
        try:
            response = await self._send(method, path, body, headers, answers_by_s=answers_by_s)
            try:
                yield response
            finally:
                # An answer that was not read to its end must not go back to the pool: closing the
                # connection is also what tells the upstream to stop.
                if response.content.at_eof():
                    response.release()
                else:
                    response.close()
        finally:
            self.open_count -= 1

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        *,
        answers_by_s: float | None,
    ) -> aiohttp.ClientResponse:
        """Ask, and wait for the beginning of an answer."""
        assert self._client is not None, "used without being entered"
        if self._client.closed:
            raise UpstreamUnavailable(f"{self.name} is not configured any more")
        try:
            async with asyncio.timeout_at(answers_by_s):
                # A redirection would carry our key to wherever it points.
                return await self._client.request(
                    method, self._address(path), data=body, headers=headers, allow_redirects=False
                )
        except aiohttp.SocketTimeoutError as error:
            raise self._too_slow("beginning", self._timeouts.silence_s) from error
        except aiohttp.ClientError as error:
            raise UpstreamUnavailable(f"{self.name} cannot be reached; try again") from error
        except TimeoutError as error:
            raise self._too_slow("first token", self._timeouts.first_token_s) from error


@dataclass(slots=True)
class _Pace:
    """Until when the next event of a stream must be there."""

    name: str
    timeouts: Timeouts
    next_by_s: float | None
    ends_s: float | None
    has_begun: bool = False

    @property
    def deadline_s(self) -> float:
        """When the wait that begins now is over: the first is counted from the question."""
        if self.next_by_s is None:
            now_s = asyncio.get_running_loop().time()
            self.next_by_s = now_s + self.timeouts.between_tokens_s
        return self.next_by_s if self.ends_s is None else min(self.next_by_s, self.ends_s)

    def came(self) -> None:
        """An event has come: the clock of the next starts with the wait for it."""
        self.has_begun, self.next_by_s = True, None

    def too_slow(self) -> UpstreamTimedOut:
        timeouts = self.timeouts
        if self.deadline_s == self.ends_s:
            return UpstreamTimedOut(f"{self.name} took longer than {timeouts.total_s} s")
        if self.has_begun:
            return UpstreamTimedOut(f"{self.name} was silent for {timeouts.between_tokens_s} s")
        return UpstreamTimedOut(
            f"{self.name} took longer than {timeouts.first_token_s} s for the first token"
        )


def _expect_good(answer: UpstreamAnswer, name: str, path: str) -> None:
    if answer.status in {401, 403}:
        raise UpstreamKeyRefused(f"{name} does not take the key that we have for it")
    if answer.status != 200:
        raise UpstreamUnavailable(f"{name} answered {path} with {answer.status}")


def _listed(model: _Model) -> ListedModel:
    facts = model.steelyard
    if facts is None:
        return ListedModel(model.id, model.max_model_len)
    return ListedModel(
        id=model.id,
        context_tokens_max=model.max_model_len,
        has_chat_template=facts.has_chat_template,
        tokenizer=TokenizerFacts(
            sha256=facts.tokenizer_sha256,
            is_byte_level=facts.byte_level,
            bytes_per_token_max=facts.bytes_per_token_max,
            template_tokens_base=facts.template_tokens_base,
            template_tokens_per_message=facts.template_tokens_per_message,
            special_tokens_added=facts.special_tokens_added,
        ),
        paths=facts.paths,
    )


class _Stream:
    def __init__(self, response: aiohttp.ClientResponse, pace: _Pace) -> None:
        self._response = response
        self._pace = pace

    @property
    def status(self) -> int:
        return self._response.status

    async def refusal(self) -> UpstreamAnswer:
        return await _read(self._response)

    async def payloads(self) -> AsyncIterator[bytes]:
        if self._response.content_type == "application/json":
            # A server that errs may answer a wish for a stream with a document.
            yield (await _read(self._response)).body
            return
        reader = EventStreamReader()
        try:
            while received := await self._receive():
                payloads = reader.feed(received)
                if payloads:
                    self._pace.came()
                for payload in payloads:
                    yield payload
            for payload in reader.end():
                yield payload
        except TimeoutError as error:
            raise self._pace.too_slow() from error
        except aiohttp.ClientError as error:
            raise UpstreamFailed(
                "the model's server broke off in the middle of the answer"
            ) from error
        except EventTooLong as error:
            raise UpstreamFailed("the model's server sent an event without end") from error

    async def _receive(self) -> bytes:
        """What has come, without a timer where something has; empty at the end."""
        content = self._response.content
        received = content.read_nowait()
        if received or content.at_eof():
            return received
        async with asyncio.timeout_at(self._pace.deadline_s):
            return await content.readany()


async def _read(response: aiohttp.ClientResponse) -> UpstreamAnswer:
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_BYTES_MAX:
                raise UpstreamFailed("the model's server sent an answer without end")
    except aiohttp.SocketTimeoutError as error:
        raise UpstreamTimedOut("the model's server fell silent") from error
    except aiohttp.ClientError as error:
        raise UpstreamFailed("the model's server broke off") from error
    return UpstreamAnswer(response.status, b"".join(pieces), response.headers.get("Retry-After"))
