"""Wakes those who wait for a commit: once for each event loop, however many they are."""

import asyncio
import threading
from collections import defaultdict
from concurrent.futures import Future

Waiters = list["tuple[Future[None], asyncio.Future[None]]"]


class CommitWaiters:
    """Coroutines that wait for records to be durable."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, Waiters] = defaultdict(list)

    async def wait_for(self, done: "Future[None]") -> None:
        """Return when the record is durable, or raise what became of it."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting[loop].append((done, waiter))
        # What was done before the lock was taken, nobody would be woken for.
        if not done.done():
            await waiter
        done.result()

    def wake(self) -> None:
        """Called by the writer after each batch."""
        with self._lock:
            waiting, self._waiting = self._waiting, defaultdict(list)
        for loop, waiters in waiting.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._wake, loop, waiters)

    def _wake(self, loop: asyncio.AbstractEventLoop, waiters: Waiters) -> None:
        """Those whose record was not in the batch go on waiting."""
        rest = [pair for pair in waiters if not pair[0].done()]
        for done, waiter in waiters:
            if done.done() and not waiter.done():
                waiter.set_result(None)
        if rest:
            with self._lock:
                self._waiting[loop].extend(rest)
            if any(done.done() for done, _ in rest):
                self.wake()
