"""HTTP/1.1 as uvicorn speaks it, with bounds on what a connection may take before it is a request.

uvicorn reads headers of any size, for as long as the client likes, and goes on to read a body that
nobody wants. Here each of them ends: with an answer that has a stable code where one can be given.
"""

from asyncio import TimerHandle
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from steelyard.entrypoints.openai_api.error_answer import (
    HeadersTooLarge,
    HttpMalformed,
    RequestTimeout,
    error_body,
    status_of,
)
from steelyard.errors import Refusal

# A header has a name, a value, and four bytes around them.
AROUND_HEADER_BYTES = 4


class _HeadersTooLarge(Exception):
    """Leaves the parser."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `guarded` says what its bounds are."""

    header_bytes_max: int
    header_timeout_s: float

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_headers = True
        self._has_begun = False
        self._message_count = 0
        # What has come of headers that are not whole, and what those have that are.
        self._fed_bytes = 0
        self._header_bytes = 0
        self._deadline: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        before = self._message_count
        try:
            self.parser.feed_data(data)  # pyright: ignore[reportOptionalMemberAccess]
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
            if self._fed_bytes > self.header_bytes_max:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers, self._has_begun = True, True
        self._message_count += 1
        self._fed_bytes = self._header_bytes = 0
        if self._deadline is None:
            self._set_deadline()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + AROUND_HEADER_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._cancel_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:
            # It was answered before it was whole; it is now, and another may follow.
            self._cancel_deadline()
        self._has_begun = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_begun and not self._is_in_headers:
            # Nobody wants the rest of the body; some clients read the answer only after it.
            self._set_deadline()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.header_bytes_max:
            raise _HeadersTooLarge

    def _set_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_in_headers and self._has_begun:
            self._refuse(
                RequestTimeout(f"the headers took longer than {self.header_timeout_s:g} s")
            )
        elif not self.transport.is_closing():
            self.transport.close()

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the headers are larger than {self.header_bytes_max} bytes")

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless something else is being answered, and hang up."""
        self._cancel_deadline()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if not cycle or cycle.response_complete:
            body = error_body(refusal)
            head = (
                b"content-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            )
            self.transport.write(STATUS_LINE[status_of(refusal)] + head + body)
        self.transport.close()


def guarded(*, header_bytes_max: int, header_timeout_s: float) -> type[GuardedProtocol]:
    """The protocol with these bounds, for uvicorn to make connections of."""

    class Bounded(GuardedProtocol):
        pass

    Bounded.header_bytes_max = header_bytes_max
    Bounded.header_timeout_s = header_timeout_s
    return Bounded
