"""The workers and the relay of a history: the product's own loops, in threads that take turns."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from steelyard.entrypoints.worker_process import FAILURE_PAUSE_S, Sweep, Worker
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogs
from steelyard.eventlog.relay import Relay
from tests.sim.broker import Broker, GroupMember, SlowOutboxFolder
from tests.sim.faulty_books import FaultyBooks
from tests.sim.life import Life
from tests.sim.universe import Universe, WallClock
from tests.sim.virtual_threads import VirtualThread, sleep_here

RESTART_S = 1.0
POLL_S = 0.2


class BackgroundProcess:
    """A process that works for ever: life after life, until the history is over."""

    def __init__(
        self, universe: Universe, name: str, begin: Callable[[], Callable[[], int]]
    ) -> None:
        self.universe = universe
        self.name = name
        self._begin = begin
        self.life: Life | None = None

    async def supervise(self) -> None:
        while True:
            life = self.life = self.universe.new_life(self.name)
            life.start(self._live())
            await life.ended.wait()
            await asyncio.sleep(self.universe.chance.uniform(0, RESTART_S))

    def kill(self) -> None:
        if self.life is not None and not self.life.is_dead:
            self.universe.note("process.killed", name=self.name)
            self.life.kill()

    async def _live(self) -> None:
        VirtualThread(target=self._loop, name=self.name).start()

    def _loop(self) -> None:
        """What `run_worker` does, and `run_relay`."""
        work = self._begin()
        while True:
            try:
                is_idle = work() == 0
            except Failure as failure:
                self.universe.note("process.paused", reason=failure)
                sleep_here(FAILURE_PAUSE_S)
                continue
            if is_idle:
                sleep_here(POLL_S)


def worker_process(universe: Universe, name: str, broker: Broker | None) -> BackgroundProcess:
    """A worker over the broker, or over the outboxes themselves."""

    def begin() -> Callable[[], int]:
        stores = replace(
            universe.stores, books=FaultyBooks(universe), clock=WallClock(universe.loop)
        )
        logs: EventLogs = GroupMember(broker) if broker else SlowOutboxFolder(universe)
        worker = Worker(stores, logs, batch_max=universe.plan.batch_max)
        sweep = Sweep(stores, every_s=10.0, hold_ttl_s=60.0)

        def work() -> int:
            read = worker.work()
            sweep.run_if_due()
            return read

        return work

    return BackgroundProcess(universe, name, begin)


def relay_process(universe: Universe, broker: Broker) -> BackgroundProcess:
    return BackgroundProcess(
        universe, "relay", lambda: Relay(broker, universe.folder, batch_max=5).work
    )
