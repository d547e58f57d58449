"""One life of one process: its tasks and threads, and what is left when it is killed."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.virtual_threads import VirtualThread


class Crashed(BaseException):
    """The process is dead: nothing that it was about to do happens."""


class Life:
    """From the start of a process to its end. What it knows only in memory goes with it."""

    def __init__(
        self,
        name: str,
        *,
        chance: Random,
        queue_s: float,
        on_trouble: "Callable[[Life, BaseException], None]",
    ) -> None:
        self.name = name
        self._on_trouble = on_trouble
        self.chance = chance
        self.is_dead = False
        self.ended = asyncio.Event()
        self.threads: dict[VirtualThread, None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        # What the operating system does for a dead process: let go of its files.
        self.at_death: list[Callable[[], None]] = []
        # How long a batch of a queue, and a call in a thread, take at most.
        self.is_disk_full = False
        self.queue_s, self.thread_s = queue_s, 0.002

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task of this life."""
        context = copy_context()
        context.run(LIFE.set, self)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self.tasks[task] = None
        task.add_done_callback(self._note)
        return task

    def kill(self) -> None:
        """SIGKILL. Its coroutines unwind as well, but whatever they touch is dead."""
        if self.ended.is_set():
            return
        self.is_dead = True
        for thread in list(self.threads):
            thread.die()
        for task in list(self.tasks):
            task.cancel()
        for let_go in self.at_death:
            let_go()
        self.ended.set()

    def crash_here(self) -> None:
        """Die in the middle of what one of its own threads is doing: raises Crashed."""
        self.is_dead = True
        asyncio_loop = next(iter(self.tasks)).get_loop()
        asyncio_loop.call_soon(self.kill)
        raise Crashed

    def way_to_queue(self) -> float:
        return self.chance.uniform(0, self.queue_s)

    def way_to_thread(self) -> float:
        return self.chance.uniform(0, self.thread_s)

    def _note(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.is_dead:
            self._on_trouble(self, error)


LIFE: ContextVar[Life] = ContextVar("life")
