"""HTTP/1.1 on httptools, with bounds on what a connection may take before it is a request.

A connection hands each request to the application as an HttpClient, in a task of its own; one after
the other where they are pipelined. Headers of any size, headers that never end and bodies that
nobody wants end here: with an answer that has a stable code where one can be given.
"""

import asyncio
from asyncio import TimerHandle
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import structlog

from steelyard.entrypoints.openai_api.error_answer import (
    HeadersTooLarge,
    HttpMalformed,
    InternalError,
    RequestTimeout,
    error_body,
    status_of,
)
from steelyard.entrypoints.openai_api.http_client import STATUS_LINES, HttpClient
from steelyard.errors import Refusal
from steelyard.gateway.key_directory import GivenBefore
from steelyard.gathered_writes import GatheredWrites

log = structlog.get_logger()

# A header has a name, a value, and four bytes around them.
AROUND_HEADER_BYTES: Final = 4
# How long a connection is kept on which nothing is asked: longer than clients and proxies keep
# theirs (httpx 5 s, aiohttp 15, nginx and load balancers 60), or one asks on it as it is closed.
IDLE_TIMEOUT_S: Final = 75.0
NAMES_REMEMBERED_MAX: Final = 1_000


class _HeadersTooLarge(Exception):
    """Leaves the parser."""


@dataclass(eq=False)
class Serving:
    """What all connections of a server share: who answers, within which bounds, and what is open."""

    answer: Callable[[HttpClient], Awaitable[None]]
    header_bytes_max: int
    header_timeout_s: float
    # The header `Date` of now, as a line.
    date_line: str = ""
    connections: "set[GuardedProtocol]" = field(default_factory=lambda: set[GuardedProtocol]())
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    # Header names as they came, in lower case: clients use the same few.
    names: dict[bytes, str] = field(default_factory=dict[bytes, str])
    writes: GatheredWrites = field(
        default_factory=lambda: GatheredWrites(asyncio.get_running_loop())
    )


class GuardedProtocol(asyncio.Protocol):
    """One connection; implements Line for the requests that come over it."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.given_before = GivenBefore()
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)
        self._parser: Any = httptools.HttpRequestParser(self)
        # What follows a last request is not an error of that request.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._is_in_headers = True
        self._has_begun = False
        self._message_count = 0
        # What has come of headers that are not whole, and what those have that are.
        self._fed_bytes = 0
        self._header_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        # The request that is read, the one that is answered, and those between.
        self._reading: HttpClient | None = None
        self._running: HttpClient | None = None
        self._waiting: deque[HttpClient] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_last = False
        self._is_paused = False
        self._can_write: asyncio.Event | None = None
        # One timer for all deadlines: most are met long before they are due.
        self._deadline: float | None = None
        self._is_idle = False
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._serving.connections.add(self)
        self._set_deadline(self._serving.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._serving.connections.discard(self)
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        if self._can_write is not None:
            self._can_write.set()
        if self._running is not None:
            self._running.leave()
        # It refers back to this connection.
        self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        before = self._message_count
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, _HeadersTooLarge):
                self._refuse(self._too_large())
            else:
                self._refuse(HttpMalformed())
            return
        except httptools.HttpParserUpgrade:
            # No protocol that we speak: it is answered as a request.
            return
        except httptools.HttpParserError:
            self._refuse(HttpMalformed())
            return
        # The piece in which a request begins may hold the end of another.
        if self._is_in_headers and self._message_count == before:
            self._fed_bytes += len(data)
            if self._fed_bytes > self._serving.header_bytes_max:
                self._refuse(self._too_large())

    def pause_writing(self) -> None:
        if self._can_write is None:
            self._can_write = asyncio.Event()
        self._can_write.clear()

    def resume_writing(self) -> None:
        if self._can_write is not None:
            self._can_write.set()

    def shut_down(self) -> None:
        """Take no request any more; what has come is answered."""
        self._is_last = True
        if self._running is None:
            self._close()
        else:
            newest = self._waiting[-1] if self._waiting else self._running
            newest.is_kept_alive = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._is_in_headers, self._has_begun = True, True
        self._message_count += 1
        self._fed_bytes = self._header_bytes = 0
        self._url = b""
        self._headers = []
        if self._deadline is None or self._is_idle:
            self._set_deadline(self._serving.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + AROUND_HEADER_BYTES)
        if self._is_in_headers:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._deadline = None
        client = self._read_head()
        self._reading = client
        if self._running is None:
            self._start(client)
        else:
            self._waiting.append(client)
            self.pause_reading()

    def on_body(self, piece: bytes) -> None:
        if self._reading is not None:
            self._reading.feed(piece)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            if self._reading.is_answered:
                # It was answered before it was whole; it is now, and another may follow.
                self._set_idle()
            self._reading.feed_end()
            self._reading = None
        self._has_begun = False

    # What the requests on it call.

    @property
    def date_line(self) -> str:
        return self._serving.date_line

    @property
    def peer(self) -> tuple[str, int] | None:
        # A name and a port; of a Unix socket it is no pair.
        name = cast("tuple[str, int] | str | None", self._transport.get_extra_info("peername"))
        return name if isinstance(name, tuple) else None

    @property
    def is_blocked(self) -> bool:
        return self._can_write is not None and not self._can_write.is_set()

    async def writable(self) -> None:
        if self._can_write is not None:
            await self._can_write.wait()

    def write(self, content: bytes) -> None:
        self._serving.writes.write(self._transport, content)

    def pause_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def end_answer(self) -> None:
        client, self._running = self._running, None
        assert client is not None, "what is answered was running"
        if self._transport.is_closing():
            return
        if not client.is_kept_alive or (self._is_last and not self._waiting):
            self._close()
            return
        self.resume_reading()
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._has_begun and not self._is_in_headers:
            # Nobody wants the rest of the body; some clients read the answer only after it.
            self._set_deadline(self._serving.header_timeout_s)
        elif not self._has_begun:
            self._set_idle()

    def _read_head(self) -> HttpClient:
        parser, names = self._parser, self._serving.names
        url, query = self._url, b""
        if not url.startswith(b"/") or b"?" in url or b"#" in url:
            parsed = httptools.parse_url(url)
            url, query = parsed.path or b"/", parsed.query or b""
        path = url.decode("ascii")
        headers: dict[str, str] = {}
        for name, value in self._headers:
            known = names.get(name)
            if known is None:
                known = _remember(name, names)
            headers[known] = value.decode("latin-1")
        return HttpClient(
            self,
            method=parser.get_method().decode("ascii"),
            path=unquote(path) if "%" in path else path,
            query=query,
            raw_headers=self._headers,
            headers=headers,
            is_kept_alive=parser.get_http_version() != "1.0" and parser.should_keep_alive(),
        )

    def _start(self, client: HttpClient) -> None:
        self._running = client
        self._task = self._loop.create_task(self._run(client))
        self._serving.tasks.add(self._task)

    async def _run(self, client: HttpClient) -> None:
        """Let the application answer; one that does not is hung up on."""
        # Before it is over, the next one on this connection may have begun.
        task = self._task
        assert task is not None, "it runs in a task"
        try:
            await self._serving.answer(client)
        except Exception:
            log.exception("connection.broke", path=client.path)
        finally:
            # Here, for a callback of the loop takes longer.
            self._serving.tasks.discard(task)
            # Also when the process stops, and the answer is cut short.
            if not client.is_answered and not client.has_left:
                await self._break_off(client)

    async def _break_off(self, client: HttpClient) -> None:
        client.is_kept_alive = False
        if client.has_started:
            client.write_beginning()
            self._running = None
            self._close()
        else:
            await client.answer(error_body(InternalError()), {}, status=500)

    def _close(self) -> None:
        """What was written leaves before."""
        self._serving.writes.flush()
        self._transport.close()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._serving.header_bytes_max:
            raise _HeadersTooLarge

    def _set_idle(self) -> None:
        self._set_deadline(IDLE_TIMEOUT_S)
        self._is_idle = True

    def _set_deadline(self, timeout_s: float) -> None:
        self._is_idle = False
        due = self._deadline = self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        due = self._deadline
        if due is None:
            return
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._look_at_deadline)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_in_headers and self._has_begun:
            timeout_s = self._serving.header_timeout_s
            self._refuse(RequestTimeout(f"the headers took longer than {timeout_s:g} s"))
        elif not self._transport.is_closing():
            self._close()

    def _too_large(self) -> HeadersTooLarge:
        bytes_max = self._serving.header_bytes_max
        return HeadersTooLarge(f"the headers are larger than {bytes_max} bytes")

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless something else is being answered, and hang up."""
        self._deadline = None
        if self._transport.is_closing():
            return
        if self._running is None:
            body = error_body(refusal)
            head = (
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.write(f"{STATUS_LINES[status_of(refusal)]}{head}".encode() + body)
        self._close()


def _remember(name: bytes, names: dict[bytes, str]) -> str:
    text = name.decode("latin-1").lower()
    if len(names) < NAMES_REMEMBERED_MAX and len(name) <= 64:
        names[name] = text
    return text
