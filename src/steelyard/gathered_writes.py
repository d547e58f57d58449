"""What is written to many sockets in one turn of an event loop leaves together, at its end.

A write wakes whoever reads. Between other work each would find its reader asleep again, and waking
one, maybe on another processor of a virtual machine, takes longer than the write; one right after
the other, they find it awake.
"""

import asyncio
from typing import Final

# With more, all of it leaves at once: it is memory, and whoever writes should feel a slow reader.
GATHERED_BYTES_MAX: Final = 256 * 1024


class GatheredWrites:
    """Of one event loop. Whoever closes a transport lets what was written to it leave before."""

    __slots__ = ("_gathered", "_loop", "_size")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._gathered: list[tuple[asyncio.WriteTransport, bytes]] = []
        self._size = 0

    def write(self, transport: asyncio.WriteTransport, content: bytes) -> None:
        """Write it when the loop has done what is ready; one that closes meanwhile gets nothing."""
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append((transport, content))
        self._size += len(content)
        if self._size > GATHERED_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered now."""
        gathered, self._gathered, self._size = self._gathered, [], 0
        for transport, content in gathered:
            if not transport.is_closing():
                transport.write(content)
