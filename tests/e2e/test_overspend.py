"""Many clients, several gateways, and money for exactly so many requests: all of it is spent, and
not one request more."""

import asyncio
import os
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from steelyard.billing.statement import read_balance
from steelyard.money import Money
from tests.e2e.crash_world import USD, CrashWorld
from tests.e2e.product import wait_until
from tests.postgres_server import create_database, find_binaries, free_port, serving_postgres

pytestmark = pytest.mark.slow
GATEWAYS, CLIENTS = 4, 200
REQUESTS = int(os.environ.get("REQUESTS", "1500"))
# Six tokens of prompt at 2 and one of answer at 10 picodollars and a million.
COST = 6 * 2_000_000 + 10_000_000
SERVED_PART_MIN = 0.99
# Money that is held by others comes back within a moment; after so long, none will.
GIVES_UP_AFTER_S = 8.0


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> Generator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with serving_postgres(binaries, options="-c fsync=off") as running:
        yield create_database(running.url, "overspend")


def test_a_balance_is_spent_to_the_last_request_and_not_beyond(
    tmp_path: Path, database_url: str | None
) -> None:
    room = {"outbox_bytes_max": 64 * 1024 * 1024}
    world = CrashWorld(tmp_path, database_url, credit=Money(REQUESTS * COST, USD), given=room)
    ports = [world.gateway_port, *(free_port() for _ in range(GATEWAYS - 1))]
    try:
        for role in ("upstream", "worker", "gateway"):
            world.start(role)
        for number, port in enumerate(ports[1:], start=2):
            name = f"gateway-{number}"
            world.start("gateway", name=name, gateway_name=name, gateway_port=str(port))
        crowd = Crowd(world, [f"http://127.0.0.1:{port}" for port in ports])
        for url in crowd.urls:
            wait_until(lambda url=url: crowd.is_ready(url), within_s=120)
        seconds = asyncio.run(crowd.spend_all())
        world.settle()
        _compare(world, crowd)
        print(f"{crowd.served} of {REQUESTS} served, {crowd.refused} refusals, {seconds:.1f} s")
    finally:
        world.stop()


@dataclass
class Crowd:
    """Clients that ask until no money is left, whatever they are told."""

    world: CrashWorld
    urls: list[str]
    served: int = 0
    refused: int = 0
    others: list[str] = field(default_factory=list[str])
    served_at: float = 0.0

    def is_ready(self, url: str) -> bool:
        return asyncio.run(_status(f"{url}/health")) == 200

    async def spend_all(self) -> float:
        started = self.served_at = time.monotonic()
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(self._ask_on(session, number) for number in range(CLIENTS)))
        return self.served_at - started

    async def _ask_on(self, session: aiohttp.ClientSession, number: int) -> None:
        url = f"{self.urls[number % len(self.urls)]}/v1/chat/completions"
        secret = self.world.secrets[number // len(self.urls) % len(self.world.secrets)]
        message = {"role": "user", "content": "x"}
        body = {"model": "scripted", "messages": [message], "max_tokens": 1}
        headers = {"Authorization": f"Bearer {secret}"}
        while time.monotonic() - self.served_at < GIVES_UP_AFTER_S:
            async with session.post(url, json=body, headers=headers) as answer:
                text = await answer.text()
            if answer.status == 200:
                self.served += 1
                self.served_at = time.monotonic()
                continue
            self.refused += answer.status == 402
            if answer.status != 402:
                self.others.append(text)
            await asyncio.sleep(0.5)


async def _status(url: str) -> int | None:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(url) as answer:
                return answer.status
        except aiohttp.ClientConnectionError:
            return None


def _compare(world: CrashWorld, crowd: Crowd) -> None:
    events = world.events().values()
    with world.stores.reports.snapshot() as snapshot:
        balance = read_balance(snapshot, world.organisation)
    charged = sum(event.data.end_cause == "completed" for event in events)

    assert crowd.others == []
    assert crowd.served == charged <= REQUESTS
    assert crowd.served >= REQUESTS * SERVED_PART_MIN
    assert balance.total.picos == (REQUESTS - charged) * COST >= 0
    assert any(event.data.lease_id for event in events)
    assert world.differences() == []
