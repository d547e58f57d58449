"""Threads that take turns: one runs at a time, and only the virtual clock wakes it.

A thread of the product runs as it is. Where it would wait, it hands the turn back to the event loop
and says what it waits for. When its process is killed, it never comes back from there.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

import anyio

from steelyard.batch_queue import BatchQueue
from steelyard.eventlog.group_commit import Commit, CommitQueue
from tests.sim.life import LIFE, Crashed, Life

T = TypeVar("T")
_running: ContextVar["VirtualThread | None"] = ContextVar("virtual_thread", default=None)
_future_result = Future[Any].result


class VirtualThread:
    """Stands in for threading.Thread."""

    def __init__(
        self, *, target: Callable[[], object], name: str = "", daemon: bool = True
    ) -> None:
        del daemon
        self.name = name
        self.life: Life = LIFE.get()
        self._target = target
        self._context = copy_context()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._wish: Callable[[], Awaitable[object]] | None = None
        self._error: BaseException | None = None
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._has_begun = False

    def start(self) -> None:
        self.life.threads[self] = None
        self.life.start(self._drive())

    def join(self) -> None:
        wait_here(self._over.wait)

    async def joined(self) -> None:
        await self._over.wait()

    def wait(self, wish: Callable[[], Awaitable[object]]) -> None:
        """Called in the thread: let others run until what is wished for has come."""
        if self.life.is_dead:
            raise Crashed
        self._wish = wish
        self._back.release()
        self._go.acquire()
        if self.life.is_dead:
            raise Crashed

    def die(self) -> None:
        """Its process is dead: let it unwind, without another turn for anybody."""
        while self._has_begun and not self._over.is_set():
            self._turn()

    async def _drive(self) -> None:
        await asyncio.sleep(0)
        while wish := self._turn():
            await wish()
        if self._error is not None:
            raise self._error

    def _turn(self) -> Callable[[], Awaitable[object]] | None:
        """Let it run until it waits again; None when it is over."""
        if self._over.is_set():
            return None
        if not self._has_begun:
            self._has_begun = True
            self._thread.start()
        self._wish = None
        self._go.release()
        self._back.acquire()
        if self._wish is None:
            self._over.set()
            self.life.threads.pop(self, None)
            self._thread.join()
        return self._wish

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._context.run(self._call)
        except Crashed:
            pass
        except BaseException as error:
            self._error = error
        self._wish = None
        self._back.release()

    def _call(self) -> None:
        _running.set(self)
        if self.life.is_dead:
            raise Crashed
        self._target()


def wait_here(wish: Callable[[], Awaitable[object]]) -> None:
    """Wait in a virtual thread, whichever runs now."""
    thread = _running.get()
    assert thread is not None, "only a virtual thread may wait"
    thread.wait(wish)


def sleep_here(seconds: float) -> None:
    wait_here(partial(asyncio.sleep, seconds))


class VirtualEvent:
    """Stands in for threading.Event."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        async def wish() -> None:
            with anyio.move_on_after(timeout):
                await self._event.wait()

        wait_here(wish)
        return self.is_set()


class VirtualThreading:
    """Stands in for the module `threading`, as far as the product uses it."""

    Thread = VirtualThread
    Event = VirtualEvent
    Lock = threading.Lock


class VirtualQueue(BatchQueue[T]):
    """A batch queue whose taker waits on the virtual clock; each batch takes a while to do."""

    def __init__(self, *, batch_max: int) -> None:
        super().__init__(batch_max=batch_max)
        self._has_some = asyncio.Event()

    def put(self, item: T) -> None:
        super().put(item)
        self._has_some.set()

    def close(self) -> None:
        super().close()
        self._has_some.set()

    def take(self) -> list[T]:
        while not (len(self) or self._is_closed):
            self._has_some.clear()
            wait_here(self._has_some.wait)
        life = LIFE.get()
        sleep_here(life.way_to_queue())
        return super().take()


class VirtualCommitQueue(CommitQueue[T]):
    """The queue of an outbox, as it is, on a disk that takes a while for each commit."""

    def __init__(self, *, batch_max: int) -> None:
        super().__init__(batch_max=batch_max)
        self._has_some = asyncio.Event()

    def _hand_over(self) -> None:
        super()._hand_over()
        self._has_some.set()

    def close(self) -> None:
        super().close()
        self._has_some.set()

    def take(self) -> Commit[T] | None:
        while self._commits.empty():
            self._has_some.clear()
            wait_here(self._has_some.wait)
        sleep_here(LIFE.get().way_to_queue())
        return super().take()


def result_of(future: Future[Any], timeout: float | None = None) -> Any:
    """Stands in for Future.result: a virtual thread lets the others run meanwhile."""
    if _running.get() is not None and not future.done():
        done = asyncio.Event()
        future.add_done_callback(lambda _: done.set())
        wait_here(done.wait)
    return _future_result(future, timeout)


async def run_in_thread(
    call: Callable[..., T], *given: Any, abandon_on_cancel: bool = False, **_: object
) -> T:
    """Stands in for anyio.to_thread.run_sync."""
    answers: list[T] = []
    errors: list[Exception] = []

    def target() -> None:
        sleep_here(LIFE.get().way_to_thread())
        try:
            answers.append(call(*given))
        except Exception as error:
            errors.append(error)

    thread = VirtualThread(target=target, name="to_thread")
    thread.start()
    with anyio.CancelScope(shield=not abandon_on_cancel):
        await thread.joined()
    if errors:
        raise errors[0]
    if not answers:
        raise Crashed
    return answers[0]
