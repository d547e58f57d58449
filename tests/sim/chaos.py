"""Strikes: processes that die or sleep, clocks that jump, disks, brokers and upstreams that go away."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tests.sim.broker import Broker
from tests.sim.engine import SimulatedEngine
from tests.sim.gateway_process import GatewayProcess
from tests.sim.universe import Universe
from tests.sim.worker_process import BackgroundProcess

BETWEEN_STRIKES_S = 1.5
STEPS_MAX = 60
AWAY_S_MAX = 8.0
JUMP_S_MAX = 7200.0


@dataclass(slots=True)
class Chaos:
    """Everything that a strike can hit."""

    universe: Universe
    gateways: Sequence[GatewayProcess]
    others: Sequence[BackgroundProcess]
    engine: SimulatedEngine
    broker: Broker | None

    async def rage(self) -> None:
        """As many strikes as are planned, at moments between any two steps of the event loop."""
        chance = self.universe.chance
        for _ in range(self.universe.plan.faults.strikes):
            await asyncio.sleep(chance.uniform(0, BETWEEN_STRIKES_S))
            for _ in range(chance.randrange(STEPS_MAX)):
                await asyncio.sleep(0)
            await chance.choice(self._strikes())()

    def calm(self) -> None:
        """Everything works again, and goes on doing so."""
        self.universe.is_calm = True
        self.universe.are_books_away = self.engine.is_away = False
        if self.broker:
            self.broker.is_away = False
        for gateway in self.gateways:
            if gateway.life:
                gateway.life.is_disk_full = False

    def _strikes(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self._kill_gateway,
            self._kill_gateway,
            self._stop_gateway,
            self._kill_other,
            self._jump,
            self._fill_disk,
            self._slow_disk,
            self._take_books,
            self._take_engine,
            *([self._take_broker] if self.broker else []),
        ]

    async def _kill_gateway(self) -> None:
        chance = self.universe.chance
        chance.choice(self.gateways).kill(loses_power=chance.random() < 0.5)

    async def _stop_gateway(self) -> None:
        await self.universe.chance.choice(self.gateways).stop()

    async def _kill_other(self) -> None:
        self.universe.chance.choice(self.others).kill()

    async def _jump(self) -> None:
        gateway = self.universe.chance.choice(self.gateways)
        seconds = self.universe.chance.uniform(-JUMP_S_MAX, JUMP_S_MAX)
        gateway.clock.ahead += timedelta(seconds=seconds)
        self.universe.note("clock.jumped", name=gateway.name, seconds=f"{seconds:.0f}")

    async def _fill_disk(self) -> None:
        gateway = self.universe.chance.choice(self.gateways)
        life = gateway.life
        if life is not None:
            life.is_disk_full = True
            await self._away(f"disk of {gateway.name}")
            life.is_disk_full = False

    async def _slow_disk(self) -> None:
        gateway = self.universe.chance.choice(self.gateways)
        if gateway.life is not None:
            gateway.life.queue_s = self.universe.chance.choice(
                (self.universe.plan.commit_s, 1.0, 8.0)
            )
            self.universe.note("disk.slow", name=gateway.name, seconds=gateway.life.queue_s)

    async def _take_books(self) -> None:
        self.universe.are_books_away = True
        await self._away("books")
        self.universe.are_books_away = False

    async def _take_engine(self) -> None:
        self.engine.is_away = True
        await self._away("engine")
        self.engine.is_away = False

    async def _take_broker(self) -> None:
        assert self.broker is not None, "there is a broker to take"
        self.broker.is_away = True
        await self._away("broker")
        self.broker.is_away = False

    async def _away(self, what: str) -> None:
        seconds = self.universe.chance.uniform(0, AWAY_S_MAX)
        self.universe.note("away", what=what, seconds=f"{seconds:.1f}")
        await asyncio.sleep(seconds)
