"""One connection to an upstream: writes a request and reads its answer (RFC 9112), one at a time.

What an answer means, and which connection is asked, is not known here.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from steelyard.gathered_writes import GatheredWrites

# More is no head of an answer, nor a trailer or an extension of a chunk.
HEAD_BYTES_MAX: Final = 64 * 1024
# What has come and was not taken; with more the rest waits in the socket, and so does its sender.
BUFFER_BYTES: Final = 64 * 1024
# What may still follow the last event of a stream.
LINGER_BYTES_MAX: Final = 16 * 1024
# Up to here head and body leave in one piece.
JOIN_BYTES_MAX: Final = 64 * 1024
# A timer may be early by so much.
TIMER_SLACK_S: Final = 0.001


class ConnectionBroken(Exception):
    """The connection was closed before the answer was whole, or what came is no answer."""


class AnswerTooLong(Exception):
    """The answer has more bytes than were asked for."""


class HttpConnection(asyncio.Protocol):
    """Borrowed by one request after the other; what it says of the answer is of the last.

    Bytes that nobody asked for spoil it: whatever they are, they are no answer to what comes next.
    """

    __slots__ = (
        "_by_s",
        "_ends_s",
        "_failure",
        "_is_asked",
        "_is_interim",
        "_is_open_ended",
        "_is_paused",
        "_is_spoiled",
        "_keeps_alive",
        "_lingered",
        "_loop",
        "_on_lost",
        "_parser",
        "_pieces",
        "_quiet_bytes",
        "_silence_s",
        "_size",
        "_size_max",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_waiter",
        "_writes",
        "content_type",
        "has_bytes",
        "has_head",
        "idle_since_s",
        "is_complete",
        "is_lost",
        "request_count",
        "retry_after",
        "sent_s",
        "status",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writes: GatheredWrites,
        *,
        on_lost: "Callable[[HttpConnection], None]",
    ) -> None:
        self._loop = loop
        self._writes = writes
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        # Servers put spaces there, and nothing can hide in them.
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._lingered: Callable[[HttpConnection], None] | None = None
        self._pieces: list[bytes] = []
        self._is_asked = self._is_paused = self._is_spoiled = self.is_lost = False
        self.request_count = 0
        self.sent_s = self.idle_since_s = 0.0
        self._forget()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow the last one."""
        assert self._transport is not None, "not connected"
        return (
            not self._is_spoiled
            and not self.is_lost
            and not self._transport.is_closing()
            # A server that answers before it has read everything will not read it any more.
            and (not self._is_asked or (self.is_complete and self._keeps_alive))
            and not self._transport.get_write_buffer_size()
        )

    def send(self, head: bytes, body: bytes) -> None:
        """Write a request; what was left of the answer before is forgotten."""
        assert self._transport is not None, "not connected"
        assert not self._is_asked, "one request at a time"
        self._is_asked = True
        self.request_count += 1
        self.sent_s = self._loop.time()
        if self.is_lost:
            self._failure = ConnectionBroken("closed")
        elif len(body) <= JOIN_BYTES_MAX:
            self._writes.write(self._transport, head + body)
        else:
            self._writes.write(self._transport, head)
            self._writes.write(self._transport, body)

    async def head(self, *, by_s: float) -> None:
        """Wait for status and headers; raises ConnectionBroken, and TimeoutError at that time."""
        while not self.has_head:
            if self._failure is not None:
                raise self._failure
            await self._more(by_s)

    def take(self) -> bytes:
        """What has come of the body and was not taken yet."""
        pieces = self._pieces
        if not pieces:
            return b""
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._is_paused:
            self._resume()
        return taken

    async def receive(self, *, by_s: float) -> bytes:
        """The next of the body, nothing at its end; raises ConnectionBroken, and TimeoutError at
        that time."""
        while not self._pieces:
            if self.is_complete:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._more(by_s)
        return self.take()

    async def whole(self, *, silence_s: float, ends_s: float, bytes_max: int) -> bytes:
        """The rest of the body; raises ConnectionBroken, AnswerTooLong, and TimeoutError at the
        end or after a silence."""
        self._silence_s, self._ends_s, self._size_max = silence_s, ends_s, bytes_max
        if self._is_paused:
            self._resume()
        while not self.is_complete:
            if self._failure is not None:
                raise self._failure
            if self._size > bytes_max:
                raise AnswerTooLong
            # A wait of `silence_s` is moved on by each piece that comes.
            await self._more(min(self._loop.time() + silence_s, ends_s))
        if self._size > bytes_max:
            raise AnswerTooLong
        return self.take()

    def linger(self, ended: "Callable[[HttpConnection], None]", *, by_s: float) -> None:
        """Let the little that follows a last event come; tells when it has, or is not to be."""
        self._lingered = ended
        self._pieces.clear()
        self._size = 0
        if self._is_paused:
            self._resume()
        self._watch(by_s)

    def rest(self) -> None:
        """The answer is done with; the connection waits for the next request."""
        self._is_asked = False
        self._pieces.clear()
        self._forget()
        self.idle_since_s = self._loop.time()

    def abort(self) -> None:
        """Close at once; that also tells the server to stop its work."""
        self._is_spoiled = True
        if self._transport is not None:
            self._transport.abort()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_asked:
            self.abort()
            return
        self.has_bytes = True
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_spoiled = True
            if not self.is_complete:
                self._fail(ConnectionBroken(f"not HTTP: {error}"))
                self.abort()
                return
        if self._size > size:
            self._quiet_bytes = 0
        elif not self.is_complete:
            self._quiet_bytes += len(data)
            if self._quiet_bytes > HEAD_BYTES_MAX:
                self._fail(ConnectionBroken("headers without end"))
                self.abort()
                return
        if self._lingered is not None:
            self._end_lingering()
        elif self._waiter is not None:
            self._tell()
        elif self._size > BUFFER_BYTES and not self._is_paused and not self.is_complete:
            assert self._transport is not None, "bytes come over a connection"
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_asked and not self.is_complete:
            if self.has_head and self._is_open_ended and exc is None and not self._is_spoiled:
                self.is_complete = True
            elif self._failure is None:
                self._failure = ConnectionBroken("closed")
        self._wake()
        if self._lingered is not None:
            self._end_lingering()
        self._on_lost(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self._is_spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.has_head:
            # A trailer, or an answer that nobody asked for.
            return
        match name.lower():
            case b"content-length":
                self._is_open_ended = False
            case b"content-type":
                self.content_type = value
            case b"transfer-encoding" if value.lower().endswith(b"chunked"):
                self._is_open_ended = False
            case b"retry-after":
                self.retry_after = value
            case _:
                pass

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._is_interim = True
            return
        self.status = status
        self._keeps_alive = self._parser.should_keep_alive()
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        if self.is_complete:
            return
        self._pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim, self._is_open_ended = False, True
            self.content_type, self.retry_after = b"", None
        elif self.has_head:
            self.is_complete = True

    def _forget(self) -> None:
        """Nothing is known of an answer yet."""
        self.status = 0
        self.content_type = b""
        self.retry_after: bytes | None = None
        self.has_bytes = self.has_head = self.is_complete = False
        self._is_interim, self._is_open_ended, self._keeps_alive = False, True, False
        self._failure: Exception | None = None
        self._size = self._quiet_bytes = self._size_max = 0
        # Of an answer that is read whole; None for one that is read as it comes.
        self._silence_s: float | None = None
        self._ends_s = float("inf")

    def _more(self, by_s: float) -> "asyncio.Future[None]":
        """Done when there is more to see; raises TimeoutError at that time."""
        self._waiter = waiter = self._loop.create_future()
        self._watch(by_s)
        return waiter

    def _tell(self) -> None:
        """Wake who waits, unless it waits for more than this."""
        if self._silence_s is not None and not self.is_complete and self._size <= self._size_max:
            self._by_s = min(self._loop.time() + self._silence_s, self._ends_s)
        elif self.has_head:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, failure: ConnectionBroken) -> None:
        self._failure = failure
        self._wake()

    def _end_lingering(self) -> None:
        ended = self._lingered
        assert ended is not None, "it lingers"
        too_much = self._size > LINGER_BYTES_MAX
        if self.is_complete or self.is_lost or too_much or self._failure is not None:
            self._lingered = None
            ended(self)

    def _resume(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _watch(self, by_s: float) -> None:
        """Have the timer look at that time, or before; one that is set is not moved for each wait."""
        self._by_s = by_s
        if by_s == float("inf") or (self._timer is not None and self._timer_at_s <= by_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = by_s
        self._timer = self._loop.call_at(by_s, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._waiter is None and self._lingered is None:
            return
        if self._by_s - self._loop.time() > TIMER_SLACK_S:
            self._watch(self._by_s)
        elif self._lingered is not None:
            self.abort()
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_exception(TimeoutError())
