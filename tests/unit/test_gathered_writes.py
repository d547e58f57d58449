"""What one turn of the event loop writes leaves together at its end."""

import asyncio

import pytest

from steelyard.gathered_writes import GATHERED_BYTES_MAX, GatheredWrites
from tests.raw_http import MemoryTransport

pytestmark = pytest.mark.anyio


async def test_what_is_written_in_a_turn_leaves_at_its_end_in_order() -> None:
    writes = GatheredWrites(asyncio.get_running_loop())
    first, second = MemoryTransport(), MemoryTransport()
    writes.write(first, b"a")
    writes.write(second, b"b")
    writes.write(first, b"c")
    assert (first.written, second.written) == (b"", b"")

    await asyncio.sleep(0)

    assert (first.written, second.written) == (b"ac", b"b")


async def test_a_later_turn_writes_again() -> None:
    writes = GatheredWrites(asyncio.get_running_loop())
    transport = MemoryTransport()
    for piece in (b"a", b"b"):
        writes.write(transport, piece)
        await asyncio.sleep(0)

    assert transport.written == b"ab"


async def test_more_than_may_gather_leaves_at_once() -> None:
    writes = GatheredWrites(asyncio.get_running_loop())
    transport = MemoryTransport()
    writes.write(transport, b"a")
    writes.write(transport, bytes(GATHERED_BYTES_MAX))

    assert len(transport.written) == GATHERED_BYTES_MAX + 1


async def test_what_was_flushed_is_not_written_again() -> None:
    writes = GatheredWrites(asyncio.get_running_loop())
    transport = MemoryTransport()
    writes.write(transport, b"a")
    writes.flush()
    writes.write(transport, b"b")
    await asyncio.sleep(0)

    assert transport.written == b"ab"


async def test_a_transport_that_closes_meanwhile_gets_nothing_and_the_others_do() -> None:
    writes = GatheredWrites(asyncio.get_running_loop())
    gone, there = MemoryTransport(), MemoryTransport()
    writes.write(gone, b"a")
    writes.write(there, b"b")
    gone.abort()
    await asyncio.sleep(0)

    assert (gone.written, there.written) == (b"", b"b")
