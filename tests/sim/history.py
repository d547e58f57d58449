"""One history: a seed decides a world and everything that goes wrong in it. Read this first.

Clients ask, chaos strikes, then it is calm: every process is started again and does what it does
after a crash. When nothing is open any more, all that was promised must be true.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.sim.broker import Broker
from tests.sim.caller import Told, draw_question
from tests.sim.chaos import Chaos
from tests.sim.engine import SimulatedEngine
from tests.sim.funds import Funds
from tests.sim.gateway_process import GatewayProcess
from tests.sim.invariants import final_problems
from tests.sim.plan import Plan
from tests.sim.template import fresh_stores, keys_of, pay_in, scratch_folder
from tests.sim.universe import Universe
from tests.sim.virtual_loop import VirtualLoop
from tests.sim.virtual_world import virtual_world
from tests.sim.worker_process import BackgroundProcess, relay_process, worker_process

QUIET_LOOKS_MAX = 400
QUIET_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a history; it went well if there are no problems."""

    plan: Plan
    problems: Sequence[str]
    trace: Sequence[str]
    steps: int
    answered: int
    attempts: int

    def report(self) -> str:
        """The trace and what was wrong, for people."""
        again = f"again: {self.plan.again()}"
        return "\n".join([*self.trace, "", str(self.plan), *self.problems, again])


def run_history(plan: Plan) -> Outcome:
    """Let a history happen; the same plan gives the same trace."""
    loop = VirtualLoop()
    with scratch_folder() as name, fresh_stores(Path(name)) as stores, closing(loop):
        path = Path(name) / "books.db"
        books = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        universe = Universe(
            plan=plan,
            loop=loop,
            stores=stores,
            folder=Path(name) / "outbox",
            keys=keys_of(stores)[: plan.keys],
            chance=Random(f"history {plan.seed}"),
            funds=Funds(books),
        )
        with closing(books), virtual_world(universe):
            universe.funds.paid_in = pay_in(stores, plan)
            return loop.run_until_complete(_History(universe).happen())


class _History:
    def __init__(self, universe: Universe) -> None:
        plan = universe.plan
        self._universe = universe
        self._engine = SimulatedEngine(universe)
        self._broker = Broker(universe) if plan.transport == "broker" else None
        self._gateways = [
            GatewayProcess(universe, f"gateway-{number}", self._engine)
            for number in range(plan.gateways)
        ]
        self._others: list[BackgroundProcess] = [
            worker_process(universe, f"worker-{number}", self._broker)
            for number in range(plan.workers)
        ]
        if self._broker:
            self._others.append(relay_process(universe, self._broker))
        self._chaos = Chaos(universe, self._gateways, self._others, self._engine, self._broker)
        self._told: list[Told] = []

    async def happen(self) -> Outcome:
        universe = self._universe
        loop = asyncio.get_running_loop()
        supervisors = [
            loop.create_task(process.supervise()) for process in (*self._gateways, *self._others)
        ]
        if universe.plan.kill_at_step is not None:
            universe.loop.strikes[universe.plan.kill_at_step] = self._victim().kill
        callers = [self._call() for _ in range(universe.plan.clients)]
        await asyncio.gather(self._chaos.rage(), *callers)
        self._chaos.calm()
        for gateway in self._gateways:
            gateway.kill()
        await self._wait_until_quiet()
        for supervisor in supervisors:
            supervisor.cancel()
        for process in (*self._gateways, *self._others):
            process.kill()
        await self._unwind()
        return self._outcome()

    async def _call(self) -> None:
        """One client, one question after the other."""
        chance = self._universe.chance
        for _ in range(self._universe.plan.requests_each):
            await asyncio.sleep(chance.uniform(0, self._universe.plan.think_s))
            told = await chance.choice(self._gateways).ask(draw_question(self._universe))
            if told is not None:
                self._told.append(told)

    def _victim(self) -> GatewayProcess | BackgroundProcess:
        kind = self._universe.plan.victim
        everybody = (*self._gateways, *self._others)
        return next(process for process in everybody if process.name.startswith(kind))

    async def _wait_until_quiet(self) -> None:
        """Everything that is open is recovered and settled, without another request."""
        for _ in range(QUIET_LOOKS_MAX):
            await asyncio.sleep(QUIET_LOOK_S)
            if self._universe.problems or self._is_quiet():
                return
        open_count = self._universe.funds.open_count()
        self._universe.problems.append(f"{open_count} holds and leases stay open")

    def _is_quiet(self) -> bool:
        funds = self._universe.funds
        return (
            all(gateway.is_recovered for gateway in self._gateways)
            and not funds.open_count()
            and all(gateway.is_settled(funds, self._broker) for gateway in self._gateways)
        )

    async def _unwind(self) -> None:
        """Dead coroutines end, so that nothing is left in the loop."""
        me = asyncio.current_task()
        while others := asyncio.all_tasks() - {me}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=1.0)

    def _outcome(self) -> Outcome:
        universe = self._universe
        problems = list(universe.problems) or final_problems(
            universe, made=self._engine.made, told=self._told
        )
        return Outcome(
            universe.plan,
            problems,
            universe.trace,
            universe.loop.steps,
            len(self._told),
            len(self._engine.made),
        )
