"""An event loop without a second of its own: time jumps to whatever comes next."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

STEPS_MAX = 500_000


class Stuck(Exception):
    """Everybody waits, and nothing will ever happen; or they work for ever."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run: anyio keeps its tasks in sets."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one callback after the other; where none is ready, time goes on to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._moment = 0.0
        self._task_count = 0
        self.steps = 0
        # What happens between one step and the next.
        self.strikes: dict[int, Callable[[], None]] = {}
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._moment

    def _run_once(self) -> None:
        """Part of the contract between BaseEventLoop and its subclasses."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while not ready:
            if not timers:
                raise Stuck("nobody has anything to wait for")
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer.cancelled():
                self._moment = max(self._moment, timer.when())
                ready.append(timer)
        handle: Any = ready.popleft()
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Stuck(f"{STEPS_MAX} steps, and no end")
        if not handle.cancelled():
            handle._run()
        if strike := self.strikes.pop(self.steps, None):
            strike()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its moment comes."""

    def _process_events(self, event_list: object) -> None:
        """There are none: no socket is ever opened."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        context: Context | None = None,
    ) -> NumberedTask:
        task = NumberedTask(coroutine, loop=loop, context=context)  # type: ignore[arg-type]
        self._task_count += 1
        task.number = self._task_count
        return task
