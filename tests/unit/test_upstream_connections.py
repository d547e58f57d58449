"""An upstream over real connections: what a server's end of one means, TLS, and who is told."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from steelyard.gateway.upstreams.base import (
    Timeouts,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import CHAT, Habits
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream
from steelyard.gateway.upstreams.request_head import header
from steelyard.gateway.workloads.asked import JSON_TYPE
from tests.raw_http import (
    GOOD,
    Behaviour,
    Peer,
    answers_well,
    raw_server,
    secure_server,
    until,
)

PATIENT = Timeouts(connect_s=60, first_token_s=60, between_tokens_s=60)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Run = Callable[[Coroutine[Any, Any, Any]], Any]
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@asynccontextmanager
async def upstream_to(url: str) -> AsyncGenerator[OpenAIHttpUpstream]:
    upstream = OpenAIHttpUpstream(
        "test",
        url,
        count_source="provider",
        habits=Habits(),
        timeouts=PATIENT,
        connections_max=1,
    )
    async with upstream:
        yield upstream
    assert upstream.open_count == 0


async def ask(upstream: OpenAIHttpUpstream) -> UpstreamAnswer:
    return await upstream.answer(
        CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
    )


async def stream(upstream: OpenAIHttpUpstream, *, leaves_after: int = 100) -> list[bytes]:
    """The events of a stream, left after so many."""
    came: list[bytes] = []
    async with upstream.stream(
        CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
    ) as opened:
        async for payloads in opened.payloads():
            came += payloads
            if len(came) >= leaves_after:
                break
    return came


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def sends(*pieces: bytes) -> Behaviour:
    """Sends pieces of an answer and closes."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return behave


def told_of(behaviour: Behaviour, act: Callable[[OpenAIHttpUpstream], Any], *, run: Run) -> Any:
    async def talk() -> Any:
        async with raw_server(behaviour) as server, upstream_to(server.url) as upstream:
            return await act(upstream)

    return run(talk())


@both_loops
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Le", b"?"])
def test_a_server_that_closes_before_an_answer_begins_is_not_there(sent: bytes, run: Run) -> None:
    for act in (ask, stream):
        with pytest.raises(UpstreamUnavailable):
            told_of(sends(sent), act, run=run)


@both_loops
def test_a_server_that_closes_in_the_middle_of_an_answer_has_broken_off(run: Run) -> None:
    with pytest.raises(UpstreamFailed):
        told_of(sends(GOOD[:-1]), ask, run=run)
    with pytest.raises(UpstreamFailed):
        told_of(sends(STREAM, chunk(b"data: a\n\n")), stream, run=run)


@both_loops
def test_what_came_before_a_server_broke_off_is_there_all_the_same(run: Run) -> None:
    came: list[bytes] = []

    async def act(upstream: OpenAIHttpUpstream) -> None:
        async with upstream.stream(
            CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
        ) as opened:
            async for payloads in opened.payloads():
                came.extend(payloads)

    with pytest.raises(UpstreamFailed):
        told_of(sends(STREAM + chunk(b"data: a\n\ndata: b\n\n") + b"zz\r\n"), act, run=run)
    assert came == [b"a", b"b"]


@both_loops
def test_a_server_is_told_when_a_stream_is_left_and_is_asked_anew_when_it_was_over(
    run: Run,
) -> None:
    left: list[int] = []

    async def behave(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(STREAM, chunk(b"data: a\n\n"))
            if peer.number == 0:
                await peer.closed()
                left.append(peer.number)
                return
            await peer.send(chunk(b"data: [DONE]\n\n"))
            await asyncio.sleep(0.01)
            await peer.send(b"0\r\n\r\n")

    async def act(upstream: OpenAIHttpUpstream) -> list[list[bytes]]:
        first = await stream(upstream, leaves_after=1)
        await until(lambda: left == [0])
        return [first, await stream(upstream, leaves_after=2), await stream(upstream)]

    async def talk() -> None:
        async with raw_server(behave) as server, upstream_to(server.url) as upstream:
            assert await act(upstream) == [[b"a"], [b"a", b"[DONE]"], [b"a", b"[DONE]"]]
            assert [len(peer.requests) for peer in server.peers] == [1, 2]

    run(talk())


@both_loops
def test_a_server_waits_for_a_reader_who_takes_his_time(run: Run) -> None:
    event = b"data: " + b"a" * 65_530 + b"\n\n"
    count = 1000
    sent: list[int] = []

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        for number in range(count):
            await peer.send(chunk(event))
            sent.append(number)
        await peer.send(b"0\r\n\r\n")

    async def act(upstream: OpenAIHttpUpstream) -> None:
        came = 0
        async with upstream.stream(
            CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
        ) as opened:
            async for payloads in opened.payloads():
                if not came:
                    await asyncio.sleep(0.2)
                    # What waits is in the sockets of both, and less than half of it all.
                    assert len(sent) < count / 2
                came += len(payloads)
        assert came == len(sent) == count

    told_of(behave, act, run=run)


@both_loops
def test_a_large_request_arrives_whole_with_the_length_that_it_says(run: Run) -> None:
    body = b"a" * 3_000_000

    async def talk() -> None:
        async with raw_server(answers_well) as server, upstream_to(server.url) as upstream:
            await upstream.answer(
                CHAT, body, request_id="one", tenant="acme", content_type="multipart/form-data"
            )
            head, _, came = server.requests[0].partition(b"\r\n\r\n")
            assert came == body
            assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
            assert b"Content-Type: multipart/form-data\r\n" in head
            assert b"X-Request-Id: one\r\n" in head
            assert b"acme" not in head

    run(talk())


def test_a_value_cannot_begin_a_header_of_its_own_and_is_not_told() -> None:
    with pytest.raises(ValueError, match="the header X-Request-Id has") as refused:
        header("X-Request-Id", "secret\r\nX: y")

    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `localhost` that nobody has signed, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    key = path.with_suffix(".key")
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(path)]
    subprocess.run([openssl, *options.split(), *names, *files], check=True, capture_output=True)
    return path


@both_loops
def test_a_server_whose_certificate_the_system_trusts_is_asked_by_its_name(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    names: list[str] = []

    async def talk(port: int) -> UpstreamAnswer:
        async with upstream_to(f"https://localhost:{port}") as upstream:
            await ask(upstream)
            return await ask(upstream)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with secure_server(_context(certificate, names)) as server:
        answer = run(talk(server.port))

    assert answer.body == b"{}"
    assert (names, server.requests) == (["localhost"], [2])


@both_loops
@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", False), ("127.0.0.1", True)])
def test_a_server_that_is_not_trusted_or_has_another_name_is_sent_nothing(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_trusted: bool, run: Run
) -> None:
    async def talk(port: int) -> None:
        async with upstream_to(f"https://{host}:{port}") as upstream:
            await ask(upstream)

    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with secure_server(_context(certificate, [])) as server, pytest.raises(UpstreamUnavailable):
        run(talk(server.port))

    assert sum(server.requests) == 0


def _context(certificate: Path, names: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    return context
