"""One HTTP request and its answer, as the application sees them. The connection under it, with the
bounds on what it may take, is in `guarded_protocol.py`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

import anyio

from steelyard.entrypoints.openai_api.error_answer import BodyTooLarge, RequestTimeout
from steelyard.entrypoints.openai_api.error_shape import ErrorShape
from steelyard.entrypoints.openai_api.surfaces import OPENAI
from steelyard.errors import SteelyardError
from steelyard.gateway.key_directory import GivenBefore
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.relay import ClientLeft, UpstreamRefused

SEND_TIMEOUT_S: Final = 60.0
FILE_PIECE_BYTES: Final = 64 * 1024
# What may have come of a body before it is read; then the connection is not read from.
BODY_AHEAD_BYTES_MAX: Final = 64 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}

RawHeaders = Sequence[tuple[bytes, bytes]]


class Line(Protocol):
    """The connection that a request came over."""

    given_before: GivenBefore

    @property
    def date_line(self) -> str:
        """The header `Date` of now, as a line."""
        ...

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address at the other end, where it has one."""
        ...

    @property
    def is_blocked(self) -> bool:
        """Whether the other end does not take what was written before."""
        ...

    async def writable(self) -> None:
        """Return when the other end takes more, or is gone."""
        ...

    def write(self, content: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def end_answer(self) -> None:
        """The answer to the request that runs is written."""
        ...


class HttpClient:
    """The client at the other end of one request; implements AnsweringClient."""

    __slots__ = (
        "_announced",
        "_beginning",
        "_expects_continue",
        "_held_bytes",
        "_is_whole",
        "_line",
        "_pieces",
        "_tell_left",
        "_waiter",
        "errors",
        "has_left",
        "has_started",
        "headers",
        "is_answered",
        "is_kept_alive",
        "method",
        "path",
        "query",
        "raw_headers",
    )

    def __init__(
        self,
        line: Line,
        *,
        method: str,
        path: str,
        query: bytes,
        raw_headers: RawHeaders,
        headers: Mapping[str, str],
        is_kept_alive: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.raw_headers = raw_headers
        self.headers = headers
        self.is_kept_alive = is_kept_alive
        self.errors: ErrorShape = OPENAI
        self.has_started = False
        self.is_answered = False
        self.has_left = False
        self._line = line
        self._announced = headers.get("content-length", "0")
        self._expects_continue = headers.get("expect", "").lower() == "100-continue"
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._is_whole = False
        self._waiter: asyncio.Future[None] | None = None
        self._tell_left: Callable[[], None] | None = None
        # The head of a stream, as long as its first event may come with it.
        self._beginning = b""

    @property
    def peer(self) -> tuple[str, int] | None:
        return self._line.peer

    @property
    def given_before(self) -> GivenBefore:
        """What the request before it on its connection had to say who asks."""
        return self._line.given_before

    def feed(self, piece: bytes) -> None:
        """A part of the body has come."""
        if self.is_answered:
            return
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > BODY_AHEAD_BYTES_MAX:
            self._line.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        """The body is whole."""
        self._is_whole = True
        self._wake()

    def leave(self) -> None:
        """The connection is gone."""
        self.has_left = True
        self._wake()
        if self._tell_left is not None:
            self._tell_left()

    def write_beginning(self) -> None:
        """Let a stream begin whose first event does not come at once."""
        if self._beginning:
            self._write(self._take_beginning())

    async def read_body(self, *, bytes_max: int, timeout_s: float) -> bytes:
        """The whole body; raises BodyTooLarge before it is taken in, RequestTimeout, and
        InvalidRequest."""
        self._check_announced(bytes_max)
        if self._is_whole:
            return self._check_size(await self._take(), 0, bytes_max)
        # One buffer: a body may come byte by byte.
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._is_whole or self._pieces:
                    body += self._check_size(await self._take(), len(body), bytes_max)
        except TimeoutError as error:
            raise RequestTimeout(f"the body took longer than {timeout_s:g} s") from error
        return bytes(body)

    async def pieces(self, *, bytes_max: int, timeout_s: float) -> AsyncIterator[bytes]:
        """The body as it comes; raises BodyTooLarge before it is taken in, RequestTimeout, and
        InvalidRequest."""
        self._check_announced(bytes_max)
        loop = asyncio.get_running_loop()
        size, gives_up_at = 0, loop.time() + timeout_s
        while not self._is_whole or self._pieces:
            try:
                async with asyncio.timeout_at(gives_up_at):
                    piece = self._check_size(await self._take(), size, bytes_max)
            except TimeoutError as error:
                raise RequestTimeout(f"the body took longer than {timeout_s:g} s") from error
            size += len(piece)
            yield piece

    async def send_file(self, path: Path, headers: Mapping[str, str]) -> None:
        """A file of lines, a piece at a time."""
        async with await anyio.open_file(path, "rb") as file:
            self._start_chunks("content-type: application/jsonl; charset=utf-8\r\n", headers)
            while piece := await file.read(FILE_PIECE_BYTES):
                await self.send(piece)
        await self.finish()

    def when_left(self, tell: Callable[[], None] | None) -> None:
        self._tell_left = tell
        if tell is None:
            return
        if self.has_left:
            asyncio.get_running_loop().call_soon(tell)
        else:
            # That it goes is seen only by reading.
            self._line.resume_reading()

    async def left(self) -> None:
        gone = asyncio.Event()
        self.when_left(gone.set)
        try:
            await gone.wait()
        finally:
            self.when_left(None)

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        kind = "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        self._start_chunks(kind, headers)

    async def send(self, event: bytes) -> None:
        if self._line.is_blocked:
            await self._writable()
        if event:
            self._write(b"%b%x\r\n%b\r\n" % (self._take_beginning(), len(event), event))

    async def finish(self) -> None:
        """End what was sent in pieces; of an answer that came whole nothing is left to end."""
        if self.is_answered:
            return
        if self._line.is_blocked:
            await self._writable()
        self._write(self._take_beginning() + b"0\r\n\r\n")
        self._end()

    async def answer(self, body: bytes, headers: Mapping[str, str], *, status: int = 200) -> None:
        if "content-type" not in headers:
            headers = {"content-type": "application/json", **headers}
        head = self._head(status, f"content-length: {len(body)}\r\n", headers)
        self._write(head if self.method == "HEAD" else head + body)
        self._end()

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        retry_after = refused.answer.retry_after
        if retry_after:
            headers = {**headers, "retry-after": retry_after}
        status = refused.answer.status
        body = self.errors.refusal(refused.answer.body, status=status)
        await self.answer(body, headers, status=status)

    async def fail_stream(self, failure: SteelyardError) -> None:
        if not self.has_started:
            raise failure
        await self.send(self.errors.event(failure))

    def _check_announced(self, bytes_max: int) -> None:
        if self._announced.isdigit() and int(self._announced) > bytes_max:
            raise _too_large(bytes_max)

    def _check_size(self, piece: bytes, before: int, bytes_max: int) -> bytes:
        if before + len(piece) > bytes_max:
            raise _too_large(bytes_max)
        return piece

    async def _take(self) -> bytes:
        """What of the body has come by now, or as soon as some does; raises InvalidRequest."""
        if not self._pieces and not self._is_whole and not self.has_left:
            if self._expects_continue:
                self._expects_continue = False
                self._line.write(CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.has_left:
            raise InvalidRequest("the client left before the request was whole")
        pieces = self._pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._held_bytes = 0
        self._line.resume_reading()
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _writable(self) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._line.writable()
        except TimeoutError as error:
            raise ClientLeft from error

    def _start_chunks(self, kind: str, headers: Mapping[str, str]) -> None:
        self._beginning = self._head(200, kind, headers, "transfer-encoding: chunked\r\n")
        asyncio.get_running_loop().call_soon(self.write_beginning)

    def _head(self, status: int, first: str, headers: Mapping[str, str], last: str = "") -> bytes:
        """Status line and headers, of which `first` and `last` are lines already."""
        assert not self.has_started, "a request has one answer"
        self.has_started = True
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        # A value that holds a line would be a header of somebody else's making.
        assert lines.count("\n") == lines.count("\r") == len(headers), f"headers of more: {headers}"
        close = "" if self.is_kept_alive else "connection: close\r\n"
        line = STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
        return f"{line}{self._line.date_line}{first}{lines}{close}{last}\r\n".encode()

    def _take_beginning(self) -> bytes:
        taken, self._beginning = self._beginning, b""
        return taken

    def _write(self, content: bytes) -> None:
        if not self.has_left:
            self._line.write(content)

    def _end(self) -> None:
        self.is_answered = True
        self._pieces.clear()
        self._line.end_answer()


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {bytes_max} bytes")
