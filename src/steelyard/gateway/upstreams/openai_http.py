"""Any server that speaks OpenAI's protocol over HTTP: our engine, vLLM and others."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Literal

import aiohttp
import msgspec

from steelyard.gateway.event_stream import EventStreamReader, EventTooLong
from steelyard.gateway.upstreams.base import (
    LoggedAttempt,
    LoggedAttempts,
    ServedModel,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import Habits
from steelyard.metering.token_bound import TokenizerFacts
from steelyard.metering.usage_event import CountSource

ANSWER_BYTES_MAX = 64 * 1024 * 1024
LOG_PATH = "/requests"


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
    max_model_len: int
    steelyard: _Tokenizer


class _Models(msgspec.Struct):
    data: list[_Model]


class _Count(msgspec.Struct):
    count: int


class _LoggedAnswer(msgspec.Struct, gc=False):
    cached_tokens: int = 0


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int


class _LoggedUsage(msgspec.Struct, gc=False):
    """The usage block that the engine would have sent."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens


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
        cached = max([answer.cached_tokens for answer in self.answers], default=0)
        return _LoggedUsage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            _CachedTokens(min(cached, self.prompt_tokens)),
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
        connect_timeout_s: float,
        between_bytes_timeout_s: float,
        connections_max: int,
    ) -> None:
        self.name = name
        self.count_source: CountSource = count_source
        self.habits = habits
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_s, sock_read=between_bytes_timeout_s
        )
        self._connections_max = connections_max
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "OpenAIHttpUpstream":
        connector = aiohttp.TCPConnector(limit=self._connections_max, keepalive_timeout=30)
        self._client = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, auto_decompress=False
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

    async def models(self) -> list[ServedModel]:
        answer = await self._call("GET", "/v1/models", None)
        try:
            listed = msgspec.json.decode(answer.body, type=_Models)
        except msgspec.ValidationError as error:
            raise UpstreamFailed(f"{self.name} lists its models in a way we cannot read") from error
        return [self._served(model) for model in listed.data]

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        del path
        answer = await self._call("POST", "/tokenize", body)
        return msgspec.json.decode(answer.body, type=_Count).count

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        async with self._request(
            "POST", path, body, request_id, tenant=tenant, content_type=content_type
        ) as response:
            return await _read(response)

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        body = msgspec.json.encode({"request_ids": request_ids})
        async with self._request("POST", LOG_PATH, body, None) as response:
            answer = await _read(response)
        if answer.status in {404, 405}:
            # A server that keeps no log knows of nothing.
            return LoggedAttempts({})
        if answer.status != 200:
            raise UpstreamUnavailable(f"{self.name} answered {LOG_PATH} with {answer.status}")
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
        async with self._request(
            "POST", path, body, request_id, tenant=tenant, content_type=content_type
        ) as response:
            yield _Stream(response)

    async def _call(self, method: str, path: str, body: bytes | None) -> UpstreamAnswer:
        async with self._request(method, path, body, None) as response:
            answer = await _read(response)
        if answer.status != 200:
            raise UpstreamUnavailable(f"{self.name} answered {path} with {answer.status}")
        return answer

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
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        assert self._client is not None, "used without being entered"
        headers = {"Content-Type": content_type}
        if request_id is not None:
            headers["X-Request-Id"] = request_id
        if tenant is not None and self.habits.knows_tenants:
            headers["X-Fairness-Key"] = tenant
        try:
            response = await self._client.request(
                method, self._url + path, data=body, headers=headers
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamUnavailable(f"{self.name} cannot be reached; try again") from error
        try:
            yield response
        finally:
            # An answer that was not read to its end must not go back to the pool: closing the
            # connection is also what tells the upstream to stop.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    def _served(self, model: _Model) -> ServedModel:
        facts = model.steelyard
        return ServedModel(
            id=model.id,
            upstream=self.name,
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
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

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
            async for received in self._response.content.iter_any():
                for payload in reader.feed(received):
                    yield payload
            for payload in reader.end():
                yield payload
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamFailed(
                "the model's server broke off in the middle of the answer"
            ) from error
        except EventTooLong as error:
            raise UpstreamFailed("the model's server sent an event without end") from error


async def _read(response: aiohttp.ClientResponse) -> UpstreamAnswer:
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_BYTES_MAX:
                raise UpstreamFailed("the model's server sent an answer without end")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamFailed("the model's server broke off") from error
    return UpstreamAnswer(response.status, b"".join(pieces), response.headers.get("Retry-After"))
