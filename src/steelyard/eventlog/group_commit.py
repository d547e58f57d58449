"""Group commits: what many put together is made durable at once, and waited for together."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

from steelyard.running_loop import running_loop

T = TypeVar("T")
INFINITE: Final = float("inf")

_Waiters = dict[asyncio.AbstractEventLoop, "list[asyncio.Future[None]]"]


class Commit(Generic[T]):
    """One commit to come: what goes into it, and who waits for it."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.done: Future[None] = Future()
        # The same as `done` says, for many that look: that takes a lock and several calls.
        self._is_over = False
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._waiting: _Waiters = {}

    async def durable(self, *, timeout_s: float | None = None) -> None:
        """Return when it is on the disk, or raise what became of it; raises TimeoutError if that
        is not known in time."""
        if not self._is_over:
            loop = running_loop()
            assert loop is not None, "it is awaited"
            waiter: asyncio.Future[None] = loop.create_future()
            with self._lock:
                # Whoever finishes it has the lock, and finds the waiter or was there before.
                is_over = self._is_over
                if not is_over:
                    self._waiting.setdefault(loop, []).append(waiter)
            if not is_over:
                alarm = None if timeout_s is None else loop.call_later(timeout_s, _expire, waiter)
                try:
                    await waiter
                finally:
                    if alarm is not None:
                        alarm.cancel()
        if self._failure is not None:
            raise self._failure

    def finish(self, failure: Exception | None = None) -> None:
        """Tell everybody, with one wake-up for each event loop."""
        with self._lock:
            self._is_over, self._failure = True, failure
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
    """Many threads put, one thread takes whatever has gathered.

    What an event loop puts is handed over when the loop has done all that was ready: the taker is
    woken once for many, and not in the midst of the loop's work. What may wait, or everything with
    `gather_s`, is handed over so long after the first of it, or with what may not, or when there are
    `gather_max`.
    """

    def __init__(
        self, *, batch_max: int, gather_s: float = 0.0, gather_max: int | None = None
    ) -> None:
        self._batch_max = batch_max
        self._gather_s = gather_s
        self._gather_max = gather_max or batch_max
        self._lock = threading.Lock()
        # Commits that nobody has taken; None is the last one.
        self._commits: SimpleQueue[Commit[T] | None] = SimpleQueue()
        self._newest: Commit[T] | None = None
        # Whether the newest is still to be handed over, and how soon the event loop was told to.
        self._is_gathering = False
        self._due_in_s = INFINITE
        self._waiting_count = 0

    def put(self, item: T, *, may_wait_s: float = 0.0) -> Commit[T]:
        """The commit that the item will be in; nobody else need wait for one that may wait."""
        loop = running_loop()
        with self._lock:
            self._waiting_count += 1
            commit = self._with_room()
            commit.items.append(item)
            # Whoever is no event loop may wait for it at once.
            if loop is None or len(commit.items) >= self._gather_max:
                self._hand_over()
            elif self._is_gathering:
                self._call_when_gathered(loop, commit, may_wait_s or self._gather_s)
            return commit

    def put_all(self, items: Sequence[T]) -> Sequence[Commit[T]]:
        """The commits that the items will be in, one after the other; they are taken at once."""
        commits: list[Commit[T]] = []
        with self._lock:
            self._waiting_count += len(items)
            while items:
                commit = self._with_room()
                room = self._batch_max - len(commit.items)
                commit.items.extend(items[:room])
                items = items[room:]
                commits.append(commit)
                self._hand_over()
        return commits

    def __len__(self) -> int:
        """How many items wait."""
        return self._waiting_count

    def close(self) -> None:
        """Let the taker finish what was put before, and then end."""
        with self._lock:
            self._hand_over()
            self._commits.put(None)

    def take(self) -> Commit[T] | None:
        """Wait for at least one item; None says that the queue is closed and empty."""
        commit = self._commits.get()
        if commit is None and not self._commits.empty():
            # Put while it was being closed.
            self._commits.put(None)
            commit = self._commits.get()
        with self._lock:
            if commit is not None:
                self._waiting_count -= len(commit.items)
            if commit is self._newest:
                self._newest = None
        return commit

    def _with_room(self) -> Commit[T]:
        """With the lock."""
        if self._newest is None or len(self._newest.items) >= self._batch_max:
            self._newest = Commit()
            self._is_gathering = True
            self._due_in_s = INFINITE
        return self._newest

    def _call_when_gathered(
        self, loop: asyncio.AbstractEventLoop, commit: Commit[T], wait_s: float
    ) -> None:
        """With the lock. What was put before and may wait longer goes with it."""
        if wait_s >= self._due_in_s:
            return
        self._due_in_s = wait_s
        if wait_s:
            loop.call_later(wait_s, self._gathered, commit)
        else:
            loop.call_soon(self._gathered, commit)

    def _gathered(self, commit: Commit[T]) -> None:
        with self._lock:
            if commit is self._newest:
                self._hand_over()

    def _hand_over(self) -> None:
        """With the lock."""
        if self._newest is not None and self._is_gathering:
            self._is_gathering = False
            self._commits.put(self._newest)


def _expire(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _wake(waiters: "list[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
