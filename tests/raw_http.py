"""The other end of a connection, byte for byte: in memory, or as a server on a socket."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class MemoryTransport(asyncio.Transport):
    """Keeps what is written; nothing is lost before the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent_bytes = 0
        self.is_paused = False
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes


@dataclass
class Peer:
    """The server's side of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    # Which connection it is, and which request on it.
    number: int
    requests: list[bytes] = field(default_factory=list[bytes])
    is_over: bool = False

    async def request(self) -> bytes | None:
        """The next request with its body; None once the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.requests.append(head + await self.reader.readexactly(length))
        return self.requests[-1]

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def close(self) -> None:
        # A transport of Python 3.11 that closed by itself once it had written everything has no loop
        # any more, and stumbles over that.
        with suppress(AttributeError):
            self.writer.transport.abort()

    async def closed(self) -> None:
        """Wait until the client has closed."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass


Behaviour = Callable[[Peer], Awaitable[None]]


@dataclass
class RawServer:
    """Does with each connection what the test wants."""

    behaviour: Behaviour
    port: int = 0
    peers: list[Peer] = field(default_factory=list[Peer])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[bytes]:
        return [request for peer in self.peers for request in peer.requests]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        try:
            await self.behaviour(peer)
        except ConnectionError:
            pass
        finally:
            peer.is_over = True
            writer.close()


@asynccontextmanager
async def raw_server(behaviour: Behaviour) -> AsyncGenerator[RawServer]:
    """A server on a port of its own."""
    raw = RawServer(behaviour)
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        for peer in raw.peers:
            peer.close()
        server.close()
        await server.wait_closed()


async def answers_well(peer: Peer) -> None:
    """Answer each request, on a connection that stays."""
    while await peer.request() is not None:
        await peer.send(GOOD)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something, as long as a slow machine may take."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class SecureServer:
    """Answers well over TLS, one connection after the other, in a thread of its own: so nothing of
    a handshake that failed is left when the test's loop ends."""

    context: ssl.SSLContext
    listener: socket.socket
    # How many requests came over each connection whose handshake was good.
    requests: list[int] = field(default_factory=list[int])
    is_over: bool = False

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        while not self.is_over:
            with suppress(OSError):
                connection, _ = self.listener.accept()
                with connection:
                    connection.settimeout(60)
                    with self.context.wrap_socket(connection, server_side=True) as secured:
                        self._answer(secured)

    def _answer(self, secured: ssl.SSLSocket) -> None:
        self.requests.append(0)
        came = b""
        while piece := secured.recv(65_536):
            came += piece
            if came.endswith(b"\r\n\r\n{}"):
                came = b""
                self.requests[-1] += 1
                secured.sendall(GOOD)


@contextmanager
def secure_server(context: ssl.SSLContext) -> Generator[SecureServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        server = SecureServer(context, listener)
        serving = threading.Thread(target=server.serve)
        serving.start()
        try:
            yield server
        finally:
            server.is_over = True
            serving.join()
