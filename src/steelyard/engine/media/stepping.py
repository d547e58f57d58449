"""Work that is done in steps, in a thread; whoever waits for it may leave between two of them."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio import CapacityLimiter

from steelyard.engine.refusals import EngineOverloaded

T = TypeVar("T")
# Does the work, and tells each step; telling ends it where nobody waits any more.
Work = Callable[[Callable[[T], None]], None]
WAITING_MAX: Final = 64
# One works, the others wait: more would only share the same cores.
WORKING_MAX: Final = 1


class _Stopped(Exception):
    """Nobody waits for the work any more."""


class Steps(Generic[T]):
    """What a piece of work gives, step by step; `failure` is what ended it too early."""

    def __init__(self) -> None:
        self._sender, self._receiver = anyio.create_memory_object_stream[T](math.inf)
        self.failure: Exception | None = None
        self._should_stop = threading.Event()

    async def __aiter__(self) -> AsyncIterator[T]:
        async for step in self._receiver:
            yield step

    def stop(self) -> None:
        """Let the work end after the step that it is at."""
        self._should_stop.set()

    async def run(self, work: Work[T], limiter: CapacityLimiter) -> None:
        """Do the work in a thread, and hand each step over."""

        def tell(step: T) -> None:
            if self._should_stop.is_set():
                raise _Stopped
            anyio.from_thread.run_sync(self._sender.send_nowait, step)

        with self._sender:
            try:
                await anyio.to_thread.run_sync(work, tell, limiter=limiter)
            except _Stopped:
                pass
            except Exception as failure:
                self.failure = failure


class Workshop:
    """Where the work of one model is done: one piece at a time, in the order of asking."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(WORKING_MAX)

    def check_room(self) -> None:
        """Refuse where too many wait already."""
        if self._limiter.statistics().tasks_waiting >= WAITING_MAX:
            raise EngineOverloaded

    @asynccontextmanager
    async def at_work(self, work: Work[T]) -> AsyncGenerator[Steps[T]]:
        """Start; leaving the context stops the work at its next step, and raises what it raised."""
        steps = Steps[T]()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(steps.run, work, self._limiter)
            try:
                yield steps
            finally:
                steps.stop()
        if steps.failure is not None:
            raise steps.failure
