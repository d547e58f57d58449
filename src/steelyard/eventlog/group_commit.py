"""Group commits: what many put together is made durable at once, and waited for together."""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

_Waiters = dict[asyncio.AbstractEventLoop, "list[asyncio.Future[None]]"]


class Commit(Generic[T]):
    """One commit to come: what goes into it, and who waits for it."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.done: Future[None] = Future()
        self._lock = threading.Lock()
        self._waiting: _Waiters = {}

    async def durable(self, *, timeout_s: float | None = None) -> None:
        """Return when it is on the disk, or raise what became of it; raises TimeoutError if that
        is not known in time."""
        if not self.done.done():
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            with self._lock:
                # Whoever finishes it has the lock, and finds the waiter or was there before.
                is_done = self.done.done()
                if not is_done:
                    self._waiting.setdefault(loop, []).append(waiter)
            if not is_done:
                await _wait(waiter, timeout_s)
        self.done.result()

    def finish(self, failure: Exception | None = None) -> None:
        """Tell everybody, with one wake-up for each event loop."""
        with self._lock:
            if failure:
                self.done.set_exception(failure)
            else:
                self.done.set_result(None)
            waiting, self._waiting = self._waiting, {}
            # They know their commit: without this, all of it would be left to the collector.
            self.items = []
        for loop, waiters in waiting.items():
            # On a loop that has been closed meanwhile nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake, waiters)


class CommitQueue(Generic[T]):
    """Many threads put, one thread takes whatever has gathered. A lone item is taken at once; no
    timer is involved."""

    def __init__(self, *, batch_max: int) -> None:
        self._batch_max = batch_max
        self._changed = threading.Condition(threading.Lock())
        self._gathered: deque[Commit[T]] = deque()
        self._is_closed = False

    def put(self, item: T) -> Commit[T]:
        """The commit that the item will be in."""
        with self._changed:
            gathered = self._gathered
            if gathered and len(gathered[-1].items) < self._batch_max:
                commit = gathered[-1]
            else:
                commit = Commit[T]()
                gathered.append(commit)
                self._changed.notify()
            commit.items.append(item)
            return commit

    def __len__(self) -> int:
        """How many items wait."""
        with self._changed:
            return sum(len(commit.items) for commit in self._gathered)

    def close(self) -> None:
        """Let the taker finish what was put before, and then end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self) -> Commit[T] | None:
        """Wait for at least one item; None says that the queue is closed and empty."""
        with self._changed:
            while not self._gathered and not self._is_closed:
                self._changed.wait()
            return self._gathered.popleft() if self._gathered else None


async def _wait(waiter: "asyncio.Future[None]", timeout_s: float | None) -> None:
    if timeout_s is None:
        await waiter
        return
    alarm = waiter.get_loop().call_later(timeout_s, _expire, waiter)
    try:
        await waiter
    finally:
        alarm.cancel()


def _expire(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _wake(waiters: "list[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
