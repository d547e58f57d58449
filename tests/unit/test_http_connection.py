"""One connection of the client: what it takes for an answer, and what it does not."""

import asyncio
from collections.abc import Sequence

import pytest

from steelyard.gateway.upstreams.http_connection import (
    BUFFER_BYTES,
    HEAD_BYTES_MAX,
    AnswerTooLong,
    ConnectionBroken,
    HttpConnection,
)
from steelyard.gathered_writes import GatheredWrites
from tests.raw_http import MemoryTransport

SOON_S = 0.02
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nRetry-After: 7\r\n\r\nhello"
ANSWERS = {
    "length": HELLO,
    "chunks": CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "extensions": CHUNKED + b'2;a=b\r\nhe\r\n3 ;c="d;e"\r\nllo\r\n0;f\r\n\r\n',
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Type: x\r\nX-Sum: 1\r\n\r\n",
    "continued": b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n" + HELLO,
}


class Line:
    """A connection that has asked, with the test at its other end."""

    def __init__(self) -> None:
        self.lost: list[HttpConnection] = []
        self.transport = MemoryTransport()
        loop = asyncio.get_running_loop()
        self.connection = HttpConnection(loop, GatheredWrites(loop), on_lost=self.lost.append)
        self.connection.connection_made(self.transport)
        self.connection.send(b"POST / HTTP/1.1\r\n\r\n", b"{}")

    def come(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    def end(self, error: Exception | None = None) -> None:
        self.connection.connection_lost(error)

    async def answer(self, *, bytes_max: int = 1_000_000) -> tuple[int, bytes]:
        """What came; a wait for more is a wait for ever."""
        by_s = asyncio.get_running_loop().time() + SOON_S
        await self.connection.head(by_s=by_s)
        body = await self.connection.whole(silence_s=SOON_S, ends_s=by_s, bytes_max=bytes_max)
        return self.connection.status, body


async def _read(*pieces: bytes, ends: bool = False) -> tuple[tuple[int, bytes], bool]:
    line = Line()
    line.come(*pieces)
    if ends:
        line.end()
    answer = await line.answer()
    return answer, line.connection.is_reusable


def read(*pieces: bytes, ends: bool = False) -> tuple[tuple[int, bytes], bool]:
    """The answer in these pieces, and whether the connection is good for another."""
    return asyncio.run(_read(*pieces, ends=ends))


def cut(answer: bytes, at: int) -> Sequence[bytes]:
    return [piece for piece in (answer[:at], answer[at:]) if piece]


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_may_be_cut_anywhere(kind: str) -> None:
    answer = ANSWERS[kind]

    async def every_cut() -> None:
        for at in range(len(answer)):
            assert await _read(*cut(answer, at)) == ((200, b"hello"), True), at
        assert await _read(*[bytes([byte]) for byte in answer]) == ((200, b"hello"), True)

    asyncio.run(every_cut())


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_ends_before_its_end_is_no_answer(kind: str) -> None:
    answer = ANSWERS[kind]

    async def every_end() -> None:
        for at in range(len(answer)):
            with pytest.raises(ConnectionBroken):
                await _read(*cut(answer[:at], at), ends=True)

    asyncio.run(every_end())


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\nhello"

    assert read(answer, ends=True) == ((200, b"hello"), False)
    with pytest.raises(TimeoutError):
        read(answer)
    with pytest.raises(ConnectionBroken):
        asyncio.run(_reset(answer))


async def _reset(answer: bytes) -> None:
    line = Line()
    line.come(answer)
    line.end(ConnectionResetError())
    await line.answer()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_a_server_that_will_close_is_not_asked_again(answer: bytes) -> None:
    assert read(answer) == ((200, b"hello"), False)


@pytest.mark.parametrize("more", [b"!", b"HTTP/1.1 200 OK\r\n", HELLO, b"\r\n\r\n\0"])
def test_what_follows_an_answer_spoils_the_connection_and_not_the_answer(more: bytes) -> None:
    assert read(HELLO + more) == ((200, b"hello"), False)
    assert read(HELLO.replace(b"Retry", b"Connection: close\r\nRetry") + more) == (
        (200, b"hello"),
        False,
    )


def test_bytes_that_nobody_asked_for_close_the_connection() -> None:
    async def talk() -> bool:
        line = Line()
        line.come(HELLO)
        await line.answer()
        line.connection.rest()
        line.come(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        return line.transport.is_aborted

    assert asyncio.run(talk())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nPRI",
        CHUNKED + b"xyz\r\n",
        CHUNKED + b"5\r\nhelloworld\r\n",
    ],
)
def test_what_is_no_http_breaks_the_connection_at_once(nonsense: bytes) -> None:
    async def talk() -> bool:
        line = Line()
        line.come(nonsense)
        with pytest.raises(ConnectionBroken):
            await line.answer()
        return line.transport.is_aborted

    assert asyncio.run(talk())


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 1000, id="one header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-Header: 1\r\n" * 100, id="many headers"),
        pytest.param(CHUNKED + b"0\r\n", b"X-Trailer: 1\r\n" * 100, id="trailers"),
        pytest.param(CHUNKED + b"1;", b"a" * 1000, id="extension"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40, id="continues"),
    ],
)
def test_nothing_but_a_body_may_be_long(begin: bytes, more: bytes) -> None:
    async def talk() -> int:
        line = Line()
        line.come(begin)
        sent = 0
        while not line.transport.is_aborted:
            line.come(more)
            sent += len(more)
        with pytest.raises(ConnectionBroken):
            await line.answer()
        return sent

    assert asyncio.run(talk()) <= HEAD_BYTES_MAX + 2 * len(more)


def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    async def talk() -> None:
        line = Line()
        line.come(CHUNKED, b"64\r\n" + b"a" * 100 + b"\r\n")
        await line.answer(bytes_max=99)

    with pytest.raises(AnswerTooLong):
        asyncio.run(talk())


def test_a_reader_who_takes_nothing_stops_the_sender_and_one_who_does_lets_it_go_on() -> None:
    piece = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"

    async def talk() -> None:
        line = Line()
        line.come(CHUNKED)
        came = 0
        while not line.transport.is_paused:
            line.come(piece)
            came += 0x1000
        assert came <= BUFFER_BYTES + 0x1000
        assert len(line.connection.take()) == came
        assert not line.transport.is_paused
        line.come(piece)
        assert len(line.connection.take()) == 0x1000

    asyncio.run(talk())


def test_a_reader_who_wants_the_whole_answer_takes_all_that_comes() -> None:
    size = 4 * BUFFER_BYTES
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()

    async def talk() -> int:
        line = Line()
        line.come(head, b"a" * (size // 2))
        assert line.transport.is_paused
        loop = asyncio.get_running_loop()
        loop.call_soon(line.come, b"a" * (size // 2))
        ends_s = loop.time() + 60
        return len(await line.connection.whole(silence_s=60, ends_s=ends_s, bytes_max=size))

    assert asyncio.run(talk()) == size


def test_a_wait_ends_at_its_time_and_the_next_has_one_of_its_own() -> None:
    async def talk() -> list[bytes]:
        line, loop = Line(), asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await line.connection.head(by_s=loop.time() + SOON_S)
        line.come(CHUNKED + b"5\r\nhello\r\n")
        await line.connection.head(by_s=loop.time())
        taken = [await line.connection.receive(by_s=loop.time())]
        # A longer wait after a short one, and a shorter one after a long one.
        loop.call_later(SOON_S, line.come, b"1\r\n!\r\n")
        taken.append(await line.connection.receive(by_s=loop.time() + 60))
        with pytest.raises(TimeoutError):
            await line.connection.receive(by_s=loop.time() + SOON_S)
        return taken

    assert asyncio.run(talk()) == [b"hello", b"!"]


def test_a_silence_is_counted_from_the_last_piece_and_the_end_from_the_question() -> None:
    async def dribble(*, silence_s: float, lasts_s: float) -> float:
        line, loop = Line(), asyncio.get_running_loop()
        line.come(CHUNKED)
        began_s = loop.time()
        for number in range(1, 20):
            loop.call_later(number * SOON_S, line.come, b"1\r\na\r\n")
        with pytest.raises(TimeoutError):
            await line.connection.whole(
                silence_s=silence_s, ends_s=began_s + lasts_s, bytes_max=100
            )
        return loop.time() - began_s

    assert asyncio.run(dribble(silence_s=10 * SOON_S, lasts_s=60)) > 20 * SOON_S
    assert asyncio.run(dribble(silence_s=60, lasts_s=5 * SOON_S)) >= 4 * SOON_S


def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    async def talk() -> tuple[int, bytes]:
        line = Line()
        waiting = asyncio.ensure_future(line.connection.head(by_s=float("inf")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        line.come(HELLO)
        return await line.answer()

    assert asyncio.run(talk()) == (200, b"hello")


def test_a_server_that_answers_before_it_has_read_the_request_is_not_asked_again() -> None:
    async def talk() -> bool:
        line = Line()
        line.transport.unsent_bytes = 1
        line.come(HELLO)
        await line.answer()
        return line.connection.is_reusable

    assert not asyncio.run(talk())


def test_what_is_known_of_an_answer_is_forgotten_before_the_next() -> None:
    async def talk() -> list[bytes | None]:
        line = Line()
        line.come(HELLO)
        await line.answer()
        told = [line.connection.retry_after]
        line.connection.rest()
        line.connection.send(b"POST / HTTP/1.1\r\n\r\n", b"{}")
        line.come(ANSWERS["chunks"])
        assert await line.answer() == (200, b"hello")
        return [*told, line.connection.retry_after]

    assert asyncio.run(talk()) == [b"7", None]


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_whole_with_its_head(status: int) -> None:
    assert read(f"HTTP/1.1 {status} -\r\n\r\n".encode()) == ((status, b""), True)
