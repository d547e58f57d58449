"""Bounds on connections, wherever the bytes are cut: beside uvicorn's own protocol, which has none."""

import asyncio
from collections.abc import Callable, MutableMapping
from itertools import pairwise
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from steelyard.entrypoints.guarded_protocol import GuardedProtocol, Serving
from steelyard.entrypoints.openai_api.http_client import HttpClient

HEADER_BYTES_MAX = 2048
BODY_BYTES_MAX = 100_000


class RecordingTransport(asyncio.Transport):
    """Keeps what is written, and whether it is closed or paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False
        self.is_paused = False

    def write(self, data: Any) -> None:
        assert not self.is_closed, "somebody writes after hanging up"
        self.written += bytes(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


async def echo(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Answers with the path and the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = f"{scope['path']} {len(scope['headers'])} {size}\n".encode()
    kind = (b"content-type", b"text/plain")
    headers = [(b"content-length", str(len(body)).encode()), kind]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo_guarded(client: HttpClient) -> None:
    """The same, of our own server."""
    size = len(await client.read_body(bytes_max=BODY_BYTES_MAX, timeout_s=30))
    body = f"{client.path} {len(client.headers)} {size}\n".encode()
    await client.answer(body, {"content-type": "text/plain"})


def plain_protocol() -> asyncio.Protocol:
    config = Config(echo, ws="none", lifespan="off", log_config=None, access_log=False)
    return HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})


def guarded_protocol() -> asyncio.Protocol:
    return GuardedProtocol(
        Serving(echo_guarded, header_bytes_max=HEADER_BYTES_MAX, header_timeout_s=30)
    )


async def talk(make: Callable[[], asyncio.Protocol], pieces: list[bytes]) -> RecordingTransport:
    transport = RecordingTransport()
    protocol = make()
    protocol.connection_made(transport)
    for piece in pieces:
        while transport.is_paused and not transport.is_closed:
            await asyncio.sleep(0)
        protocol.data_received(piece)
    for _ in range(40):
        await asyncio.sleep(0)
    has_hung_up = transport.is_closed
    protocol.connection_lost(None)
    transport.is_closed = has_hung_up
    for _ in range(10):
        await asyncio.sleep(0)
    return transport


def cut(text: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(marks)]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    path = "/" + "p" * draw(st.integers(0, 300))
    headers = [f"h{i}: {'v' * draw(st.integers(0, 100))}" for i in range(draw(st.integers(0, 8)))]
    body = b"b" * draw(st.sampled_from([0, 1, 50, 2000, 5000, 70_000]))
    if draw(st.booleans()):
        head, whole = "transfer-encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        whole = whole if body else b"0\r\n\r\n"
    else:
        head, whole = f"content-length: {len(body)}", body
    return "\r\n".join([f"POST {path} HTTP/1.1", *headers, head, "", ""]).encode() + whole


places = st.lists(st.integers(0, 10**6), max_size=20)


@given(asked=st.lists(requests(), min_size=1, max_size=4), places=places)
@settings(deadline=None, max_examples=60)
def test_requests_within_the_bounds_are_answered_as_without_them(
    asked: list[bytes], places: list[int]
) -> None:
    pieces = cut(b"".join(asked), places)

    plain = anyio.run(talk, plain_protocol, pieces)
    bounded = anyio.run(talk, guarded_protocol, pieces)

    assert bounded.written.count(b"HTTP/1.1 200") == len(asked)
    assert _without_date(bounded.written) == _without_date(plain.written)
    assert not bounded.is_closed


@given(
    size=st.integers(HEADER_BYTES_MAX + 1, 20 * HEADER_BYTES_MAX),
    count=st.integers(1, 50),
    places=st.lists(st.integers(0, 10**6), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=60)
def test_headers_over_the_bound_are_refused_once_and_the_connection_is_closed(
    size: int, count: int, places: list[int]
) -> None:
    each = size // count
    headers = "".join(f"h: {'v' * each}\r\n" for _ in range(count + 1))
    request = f"POST / HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n".encode()

    refused = anyio.run(talk, guarded_protocol, cut(request, places))

    assert refused.written.startswith(b"HTTP/1.1 431 ")
    assert refused.written.count(b"HTTP/1.1") == 1
    assert b"headers_too_large" in refused.written
    assert refused.is_closed


@given(line=st.binary(min_size=1, max_size=300), places=places)
@settings(deadline=None, max_examples=100)
def test_what_is_no_http_is_never_answered_with_anything_but_a_refusal(
    line: bytes, places: list[int]
) -> None:
    told = anyio.run(talk, guarded_protocol, cut(b"\x00" + line, places))

    assert told.written.startswith(b"HTTP/1.1 400 ")
    assert b"http_malformed" in told.written
    assert told.is_closed


def _without_date(written: bytes) -> list[bytes]:
    return [line for line in written.split(b"\r\n") if not line.startswith(b"date:")]
