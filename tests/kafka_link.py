"""A link to a Kafka broker that can lose an answer, as a network does."""

import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress

import anyio
from anyio.abc import SocketStream
from anyio.from_thread import start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

PRODUCE = 0
LEFT = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError)


class LossyLink:
    """Passes everything on to a broker. Once `loses_next` is set, the next answer to a Produce
    request is lost, and its connection with it."""

    def __init__(self, *, at: str, leads_to: str) -> None:
        self.loses_next = False
        self._at, self._leads_to = at.split(":"), leads_to.split(":")

    async def serve(self) -> None:
        host, port = self._at
        async with await anyio.create_tcp_listener(
            local_host=host, local_port=int(port)
        ) as listener:
            await listener.serve(self._pass)

    async def _pass(self, client: SocketStream) -> None:
        host, port = self._leads_to
        # The broker may be gone before those who talk to it.
        with suppress(OSError):
            async with client, await anyio.connect_tcp(host, int(port)) as broker:
                is_losing = anyio.Event()
                async with anyio.create_task_group() as both:
                    both.start_soon(_pass_answers, broker, client, is_losing, both.cancel_scope)
                    await self._pass_requests(client, broker, is_losing)
                    both.cancel_scope.cancel()

    async def _pass_requests(
        self, client: SocketStream, broker: SocketStream, is_losing: anyio.Event
    ) -> None:
        requests = BufferedByteReceiveStream(client)
        with suppress(*LEFT):
            while True:
                head = await requests.receive_exactly(6)
                length, kind = struct.unpack(">ih", head)
                if kind == PRODUCE and self.loses_next:
                    self.loses_next = False
                    is_losing.set()
                await broker.send(head + await requests.receive_exactly(length - 2))


async def _pass_answers(
    broker: SocketStream,
    client: SocketStream,
    is_losing: anyio.Event,
    until: anyio.CancelScope,
) -> None:
    with suppress(*LEFT):
        async for answer in broker:
            if is_losing.is_set():
                break
            await client.send(answer)
    until.cancel()


@contextmanager
def lossy_link(*, at: str, leads_to: str) -> Generator[LossyLink]:
    """A link that works while the block runs."""
    link = LossyLink(at=at, leads_to=leads_to)
    with start_blocking_portal() as portal:
        serving = portal.start_task_soon(link.serve)
        yield link
        serving.cancel()
