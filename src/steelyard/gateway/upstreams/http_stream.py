"""An answer that comes in pieces over HTTP, and how long each piece may take."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from steelyard.gateway.event_stream import EventStreamReader, EventTooLong
from steelyard.gateway.upstreams.base import (
    Timeouts,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamTimedOut,
)
from steelyard.gateway.upstreams.http_connection import (
    TIMER_SLACK_S,
    AnswerTooLong,
    ConnectionBroken,
    HttpConnection,
)

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
FOREVER: Final = float("inf")
# How each protocol says that nothing more comes: OpenAI's, Anthropic's, and OpenAI's Responses.
_LAST: Final = b"[DONE]"
_LAST_TYPES: Final = (b'"message_stop"', b'"response.completed"', b'"response.incomplete"')
_TYPE_BYTES: Final = 64


@dataclass(slots=True)
class Pace:
    """Until when the next event of a stream must be there."""

    name: str
    timeouts: Timeouts
    began_s: float
    # None where the clock of the next event starts with the wait for it.
    next_by_s: float | None
    ends_s: float
    has_begun: bool = False

    @classmethod
    def of(cls, name: str, timeouts: Timeouts, *, began_s: float) -> "Pace":
        """The first event is waited for from the question on."""
        ends_s = FOREVER if timeouts.total_s is None else began_s + timeouts.total_s
        return cls(name, timeouts, began_s, began_s + timeouts.first_token_s, ends_s)

    def deadline_s(self) -> float:
        """When the wait that begins now is over."""
        if self.next_by_s is None:
            now_s = asyncio.get_running_loop().time()
            self.next_by_s = now_s + self.timeouts.between_tokens_s
        return min(self.next_by_s, self.ends_s)

    def came(self) -> None:
        """An event has come."""
        self.has_begun, self.next_by_s = True, None

    def too_slow(self) -> UpstreamTimedOut:
        timeouts = self.timeouts
        if self.deadline_s() == self.ends_s:
            return UpstreamTimedOut(f"{self.name} took longer than {timeouts.total_s} s")
        if self.has_begun:
            return UpstreamTimedOut(f"{self.name} was silent for {timeouts.between_tokens_s} s")
        return UpstreamTimedOut(
            f"{self.name} took longer than {timeouts.first_token_s} s for the first token"
        )


class HttpStream:
    """Implements UpstreamStream over a connection that has the head of an answer."""

    __slots__ = ("_connection", "_has_ended", "_last", "_pace", "_reader")

    def __init__(self, connection: HttpConnection, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace
        self._reader = EventStreamReader()
        self._last = b""
        self._has_ended = False

    @property
    def status(self) -> int:
        return self._connection.status

    @property
    def is_over(self) -> bool:
        """Whether the server has said that nothing more comes."""
        last = self._last
        return last == _LAST or any(kind in last[:_TYPE_BYTES] for kind in _LAST_TYPES)

    async def refusal(self) -> UpstreamAnswer:
        timeouts, ends_s = self._pace.timeouts, self._pace.ends_s
        try:
            return await read_whole(self._connection, silence_s=timeouts.silence_s, ends_s=ends_s)
        except TimeoutError as error:
            raise UpstreamTimedOut(
                f"{self._pace.name} took longer than {timeouts.total_s} s"
            ) from error

    def payloads(self) -> AsyncIterator[Sequence[bytes]]:
        return self

    # An iterator and no generator: one that is left before its end costs the loop a task.

    def __aiter__(self) -> "HttpStream":
        return self

    async def __anext__(self) -> Sequence[bytes]:
        while not self._has_ended:
            payloads = await self._next()
            if payloads:
                self._last = payloads[-1]
                self._pace.came()
                return payloads
        raise StopAsyncIteration

    async def _next(self) -> Sequence[bytes]:
        """The events that came together; none if there is no whole one yet."""
        connection = self._connection
        if is_json(connection.content_type):
            # A server that errs may answer a wish for a stream with a document.
            self._has_ended = True
            return [(await self.refusal()).body]
        try:
            received = connection.take()
            if not received:
                # Only a wait needs a look at the clock.
                received = await connection.receive(by_s=self._pace.deadline_s())
            if received:
                return self._reader.feed(received)
            self._has_ended = True
            return self._reader.end()
        except TimeoutError as error:
            raise self._pace.too_slow() from error
        except ConnectionBroken as error:
            raise UpstreamFailed(
                "the model's server broke off in the middle of the answer"
            ) from error
        except EventTooLong as error:
            raise UpstreamFailed("the model's server sent an event without end") from error


def is_json(content_type: bytes) -> bool:
    """Whether it is a document and no stream, whatever parameters the type has."""
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


async def read_whole(
    connection: HttpConnection, *, silence_s: float, ends_s: float
) -> UpstreamAnswer:
    """The whole answer; raises UpstreamFailed, UpstreamTimedOut after a silence, and TimeoutError
    at the end."""
    status, retry_after = connection.status, connection.retry_after
    try:
        body = await connection.whole(
            silence_s=silence_s, ends_s=ends_s, bytes_max=ANSWER_BYTES_MAX
        )
    except TimeoutError as error:
        if asyncio.get_running_loop().time() >= ends_s - TIMER_SLACK_S:
            raise
        raise UpstreamTimedOut("the model's server fell silent") from error
    except ConnectionBroken as error:
        raise UpstreamFailed("the model's server broke off") from error
    except AnswerTooLong as error:
        raise UpstreamFailed("the model's server sent an answer without end") from error
    return UpstreamAnswer(status, body, retry_after.decode("latin-1") if retry_after else None)
