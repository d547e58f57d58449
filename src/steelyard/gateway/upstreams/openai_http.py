"""Any server that speaks OpenAI's or Anthropic's protocol over HTTP: our engine, vLLM and others."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType

import msgspec

from steelyard.gateway.upstreams.base import (
    ListedModel,
    LoggedAttempts,
    Timeouts,
    UpstreamAnswer,
    UpstreamKeyRefused,
    UpstreamTimedOut,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.connecting import origin_of
from steelyard.gateway.upstreams.habits import Habits
from steelyard.gateway.upstreams.http_connection import ConnectionBroken, HttpConnection
from steelyard.gateway.upstreams.http_pool import HttpPool, PoolClosed, PoolRules
from steelyard.gateway.upstreams.http_stream import FOREVER, HttpStream, Pace, read_whole
from steelyard.gateway.upstreams.listed_models import read_count, read_models
from steelyard.gateway.upstreams.logged_requests import read_logged_requests
from steelyard.gateway.upstreams.request_head import RequestHeads, header
from steelyard.metering.usage_event import CountSource

LOG_PATH = "/requests"
JSON_TYPE = "application/json"
# Calls that are no work: lists of models, and counts.
CALL_TIMEOUT_S = 15.0


class OpenAIHttpUpstream:
    """Implements Upstream over one pool of connections.

    A redirection is an answer like others: following it would carry our key to wherever it points.
    """

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
        root = url.rstrip("/")
        self._origin = origin_of(root)
        # The paths of the API are behind its own URL, all others at the root.
        self._root = _path_of(root)
        self._api = _path_of((api_url or f"{root}/v1").rstrip("/"))
        self._query = query
        # A server must not compress what we pass on as it comes.
        always = {"Accept-Encoding": "identity", **(headers or {})}
        self._heads = RequestHeads(self._origin.authority, always)
        self._timeouts = timeouts
        self._rules = PoolRules(connections_max, timeouts.connect_s)
        self._pool: HttpPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "OpenAIHttpUpstream":
        self._loop = asyncio.get_running_loop()
        self._pool = HttpPool(self._origin, self._rules)
        await self._pool.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened_pool().close()

    async def models(self) -> list[ListedModel]:
        answer = await self._look("GET", "/v1/models", b"")
        if answer.status in {404, 405}:
            # It is there, and keeps no list.
            return []
        _expect_good(answer, self.name, "/v1/models")
        return read_models(answer.body, upstream=self.name)

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        assert self.habits.counts_at is not None, f"{self.name} counts nowhere"
        at = "/tokenize" if self.habits.counts_at == "tokenize" else f"{path}/count_tokens"
        answer = await self._look("POST", at, body)
        _expect_good(answer, self.name, at)
        return read_count(answer.body, upstream=self.name)

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        head = self._work_head(
            path, body, request_id=request_id, tenant=tenant, content_type=content_type
        )
        total_s = self._timeouts.total_s
        try:
            return await self._exchange(head, body, within_s=total_s)
        except TimeoutError as error:
            raise self._too_slow("whole answer", total_s) from error

    async def logged_attempts(self, request_ids: Sequence[str]) -> LoggedAttempts:
        if not self.habits.has_request_log:
            return LoggedAttempts({})
        body = msgspec.json.encode({"request_ids": request_ids})
        answer = await self._exchange(self._head("POST", LOG_PATH, body), body, within_s=None)
        if answer.status in {404, 405}:
            # A server that keeps no log knows of nothing.
            return LoggedAttempts({})
        _expect_good(answer, self.name, LOG_PATH)
        return read_logged_requests(answer.body, upstream=self.name, count_source=self.count_source)

    def stream(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> "_Streaming":
        head = self._work_head(
            path, body, request_id=request_id, tenant=tenant, content_type=content_type
        )
        return _Streaming(self, head, body)

    async def ask_for_stream(self, head: bytes, body: bytes) -> tuple[HttpConnection, Pace]:
        """Ask, and wait for the beginning of a stream, as long as for its first event."""
        pace = Pace.of(self.name, self._timeouts, began_s=self._now())
        self.open_count += 1
        try:
            try:
                connection = await self._opened_pool().ask(head, body, by_s=pace.deadline_s())
                return connection, pace
            except (PoolClosed, ConnectionBroken) as error:
                raise self._unreachable(error) from error
            except TimeoutError as error:
                raise pace.too_slow() from error
        except BaseException:
            self.open_count -= 1
            raise

    def give_back(self, connection: HttpConnection, *, is_over: bool) -> None:
        """A stream is done with; where it is not over, closing it tells the server to stop."""
        self.open_count -= 1
        self._opened_pool().give_back(connection, is_over=is_over)

    async def _look(self, method: str, path: str, body: bytes) -> UpstreamAnswer:
        """A call that is no work."""
        try:
            head = self._head(method, path, body)
            return await self._exchange(head, body, within_s=CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise UpstreamUnavailable(f"{self.name} does not answer {path}") from error

    async def _exchange(
        self, head: bytes, body: bytes, *, within_s: float | None
    ) -> UpstreamAnswer:
        """Ask for an answer that comes whole; raises TimeoutError when the time is over."""
        began_s, silence_s = self._now(), self._timeouts.silence_s
        ends_s = FOREVER if within_s is None else began_s + within_s
        self.open_count += 1
        try:
            try:
                by_s = min(began_s + silence_s, ends_s)
                connection = await self._opened_pool().ask(head, body, by_s=by_s)
            except (PoolClosed, ConnectionBroken) as error:
                raise self._unreachable(error) from error
            except TimeoutError as error:
                if ends_s <= began_s + silence_s:
                    raise
                raise self._too_slow("beginning", silence_s) from error
            try:
                return await read_whole(connection, silence_s=silence_s, ends_s=ends_s)
            finally:
                self._opened_pool().give_back(connection)
        finally:
            self.open_count -= 1

    def _unreachable(self, error: PoolClosed | ConnectionBroken) -> UpstreamUnavailable:
        if isinstance(error, PoolClosed):
            return UpstreamUnavailable(f"{self.name} is not configured any more")
        return UpstreamUnavailable(f"{self.name} cannot be reached; try again")

    def _too_slow(self, what: str, limit_s: float | None) -> UpstreamTimedOut:
        return UpstreamTimedOut(f"{self.name} took longer than {limit_s} s for the {what}")

    def _head(
        self,
        method: str,
        path: str,
        body: bytes,
        *,
        content_type: str = JSON_TYPE,
        told: bytes = b"",
    ) -> bytes:
        target = self._api + path[3:] if path.startswith("/v1/") else self._root + path
        if method == "GET":
            return self._heads.begin(method, target + self._query, content_type=None) + b"\r\n"
        head = self._heads.begin(method, target + self._query, content_type=content_type)
        return b"%b%bContent-Length: %d\r\n\r\n" % (head, told, len(body))

    def _work_head(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> bytes:
        told = header("X-Request-Id", request_id)
        if self.habits.knows_tenants:
            told += header("X-Fairness-Key", tenant)
        return self._head("POST", path, body, content_type=content_type, told=told)

    def _opened_pool(self) -> HttpPool:
        assert self._pool is not None, "used without being entered"
        return self._pool

    def _now(self) -> float:
        assert self._loop is not None, "used without being entered"
        return self._loop.time()


class _Streaming:
    """A stream for as long as it is read."""

    __slots__ = ("_body", "_connection", "_head", "_stream", "_upstream")

    def __init__(self, upstream: OpenAIHttpUpstream, head: bytes, body: bytes) -> None:
        self._upstream = upstream
        self._head = head
        self._body = body
        self._connection: HttpConnection | None = None
        self._stream: HttpStream | None = None

    async def __aenter__(self) -> HttpStream:
        self._connection, pace = await self._upstream.ask_for_stream(self._head, self._body)
        self._stream = HttpStream(self._connection, pace)
        return self._stream

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._connection is not None, "left without being entered"
        assert self._stream is not None, "left without being entered"
        self._upstream.give_back(self._connection, is_over=self._stream.is_over)


def _path_of(url: str) -> str:
    """What of a URL stands in front of every path."""
    return "/".join(["", *url.split("/")[3:]])


def _expect_good(answer: UpstreamAnswer, name: str, path: str) -> None:
    if answer.status in {401, 403}:
        raise UpstreamKeyRefused(f"{name} does not take the key that we have for it")
    if answer.status != 200:
        raise UpstreamUnavailable(f"{name} answered {path} with {answer.status}")
