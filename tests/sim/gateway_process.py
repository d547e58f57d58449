"""A gateway of a history: it is put together as `app/gateway.py` does it, and dies at any moment."""

import asyncio
from collections.abc import Sequence

import anyio
import anyio.to_thread

from steelyard.access.rate_limit import LocalCounts
from steelyard.errors import Failure, SteelyardError
from steelyard.eventlog.outbox import Outbox
from steelyard.eventlog.relay import read_relayed
from steelyard.gateway.admission import Admission
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.disconnect_policies import DisconnectPolicies
from steelyard.gateway.holding import Holding
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.limit_directory import LimitDefaults, LimitDirectory, LimitsByPlace
from steelyard.gateway.model_catalog import EAGER_S, ModelCatalog, routes_to_all
from steelyard.gateway.outbox_pruning import OutboxPruning
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery import LeftOpen, Recovery
from steelyard.gateway.relay import ClientLeft
from steelyard.gateway.serve import serve
from steelyard.gateway.snapshot import Snapshot
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.ids import new_id
from steelyard.pricing.price_book import PriceVersion
from tests.sim.broker import Broker
from tests.sim.caller import Caller, Question, Told
from tests.sim.engine import SimulatedEngine
from tests.sim.faulty_books import FaultyBooks
from tests.sim.faulty_disk import FaultyDisk, lose_mark
from tests.sim.funds import Funds
from tests.sim.life import Life
from tests.sim.universe import Universe, WallClock

RESTART_S = 1.0
LIMITS = LimitDefaults(input_tokens_max=4096, output_tokens_default=16, requests_per_minute=1000)
STOP_S = 3.0


class GatewayProcess:
    """One gateway by name: life after life, until the history is over."""

    def __init__(self, universe: Universe, name: str, engine: SimulatedEngine) -> None:
        self.universe = universe
        self.name = name
        self.clock = WallClock(universe.loop)
        self._engine = engine
        self._path = universe.folder / f"{name}.outbox"
        self.life: Life | None = None
        self.gateway: Gateway | None = None
        self.is_recovered = False
        self._holding: Holding | None = None
        self._requests: set[asyncio.Task[Told | None]] = set()

    async def supervise(self) -> None:
        """Start it, and start it again when it has died."""
        while True:
            life = self.life = self.universe.new_life(self.name)
            life.start(self._live(life))
            await life.ended.wait()
            self.gateway, self.is_recovered = None, False
            await asyncio.sleep(self.universe.chance.uniform(0, RESTART_S))

    async def ask(self, question: Question) -> Told | None:
        """What the client was told in the end; None where it was refused or cut off."""
        life, gateway = self.life, self.gateway
        if life is None or gateway is None:
            return None
        asking = life.start(self._serve(gateway, question))
        self._requests.add(asking)
        asking.add_done_callback(self._requests.discard)
        await asyncio.wait(
            {asking, ended := asyncio.ensure_future(life.ended.wait())},
            return_when="FIRST_COMPLETED",
        )
        ended.cancel()
        if not asking.done() or asking.cancelled() or asking.exception():
            return None
        return asking.result()

    def kill(self, *, loses_power: bool = False) -> None:
        if self.life is not None and not self.life.is_dead:
            self.universe.note("process.killed", name=self.name, loses_power=loses_power)
            self.life.kill()
            if loses_power:
                lose_mark(self._path, self.universe)

    def is_settled(self, funds: Funds, broker: Broker | None) -> bool:
        """Whether all that it ever recorded is in the books, or on its way no more."""
        if self._holding is None:
            return False
        outbox = self._holding.outbox
        last = outbox._writer.next_position - 1
        if broker is None:
            return funds.is_settled(outbox.log_id, last)
        return read_relayed(self._path) == last and broker.is_settled(funds)

    async def stop(self) -> None:
        """What SIGTERM does: open answers may end, then everything is closed in order."""
        life, holding = self.life, self._holding
        if life is None or holding is None or self.gateway is None or life.is_dead:
            return
        self.universe.note("process.stopped", name=self.name)
        self.gateway = None
        await asyncio.wait({life.start(self._stop(life, holding))})
        life.kill()

    async def _stop(self, life: Life, holding: Holding) -> None:
        if self._requests:
            patience_s = self.universe.chance.choice((0.0, STOP_S))
            await asyncio.wait(set(self._requests), timeout=patience_s)
        for asking in list(self._requests):
            asking.cancel()
        if self._requests:
            await asyncio.wait(set(self._requests))
        try:
            await holding.close()
        except Failure as failure:
            self.universe.note("process.stop_failed", reason=failure)
            return
        await anyio.to_thread.run_sync(holding.outbox.close)
        # Nothing is left for the operating system to close.
        life.at_death.clear()

    async def _serve(self, gateway: Gateway, question: Question) -> Told | None:
        client = Caller(self.universe, question.leaves_after)
        request_id = new_id()
        try:
            asked = parse_chat(question.body)
            await serve(gateway, asked, question.key, client, request_id=request_id)
        except SteelyardError as error:
            self.universe.note("client.refused", request_id=request_id, code=error.code)
            return None
        except ClientLeft:
            return None
        told = client.told()
        self.universe.note("client.answered", request_id=request_id, told=told)
        return told

    async def _live(self, life: Life) -> None:
        try:
            await self._run(life)
        except Failure as failure:
            self.universe.note("process.failed", reason=failure)
            life.kill()

    async def _run(self, life: Life) -> None:
        universe, clock, books = self.universe, self.clock, FaultyBooks(self.universe)
        prefix = f"urn:steelyard:gateway:{self.name}:"
        outbox = Outbox(
            self._path,
            source=prefix + new_id(),
            bytes_max=universe.plan.outbox_bytes_max,
            disk=FaultyDisk(universe, life, clock),
        )
        life.at_death.append(outbox._writer.close)
        universe.note("process.started", source=outbox.source)
        stores = universe.stores
        holding = Holding.of(books, outbox, clock, ttl_s=universe.plan.lease_ttl_s)
        prices = Snapshot[Sequence[PriceVersion]](stores.prices.versions, stores.prices.revision)
        limits = LimitDirectory(
            Snapshot[LimitsByPlace](stores.access.limits, stores.access.revision), LIMITS
        )
        directory = PriceDirectory(prices, clock)
        catalog = ModelCatalog(routes_to_all([self._engine]), universe.loop.time)
        admission = Admission(
            catalog=catalog,
            prices=directory,
            limits=limits,
            counts=LocalCounts(universe.loop.time),
            holding=holding,
            outbox=outbox,
            clock=clock,
            disconnect_policies=DisconnectPolicies(),
            hold_chunk_tokens=universe.plan.hold_chunk_tokens,
        )
        recovery = self._recovery(holding, directory, books, prefix)
        pruning = self._pruning(outbox, books)
        left_open = await anyio.to_thread.run_sync(recovery.find)
        await prices.refresh()
        await limits.snapshot.refresh()
        while not await catalog.refresh():
            await asyncio.sleep(EAGER_S)
        self.gateway, self._holding = Gateway(admission, outbox, clock), holding
        async with anyio.create_task_group() as tasks:
            for watch in (catalog.watch, pruning.watch, holding.keeper.keep):
                tasks.start_soon(watch)
            tasks.start_soon(self._recover, recovery, left_open)

    async def _recover(self, recovery: Recovery, left_open: LeftOpen) -> None:
        await recovery.resolve(left_open)
        self.is_recovered = True

    def _recovery(
        self, holding: Holding, prices: PriceDirectory, books: FaultyBooks, prefix: str
    ) -> Recovery:
        return Recovery(
            books=books,
            leases=LeaseRecovery(holding.lease_desk, holding.outbox, self.clock, prefix),
            outbox=holding.outbox,
            prices=prices,
            upstreams=[self._engine],
            clock=self.clock,
            source_prefix=prefix,
            patience_s=1000.0,
        )

    def _pruning(self, outbox: Outbox, books: FaultyBooks) -> OutboxPruning:
        is_relayed = self.universe.plan.transport == "broker"
        return OutboxPruning(
            outbox,
            books,
            self.clock,
            keep_s=5.0,
            every_s=3.0,
            relayed=(lambda: read_relayed(self._path)) if is_relayed else None,
        )
