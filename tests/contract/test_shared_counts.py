"""Limits that several gateways share in Valkey: exact, and bounded while Valkey is away."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from steelyard.access.limits import CountedPlace, LimitSet
from steelyard.access.rate_limit import (
    TICKS_PER_S,
    Counted,
    LocalCounts,
    RateLimited,
    RequestCounts,
    TokensOverLimit,
)
from steelyard.entrypoints.cli.main import application
from steelyard.gateway.shared_counts import GATEWAYS, PREFIX, SharedCounted, SharedCounts
from steelyard.gateway.valkey_link import ValkeyLink
from tests.tape import Tape
from tests.valkey_server import ValkeyServer, running_valkey

# Long enough for a machine with much else to do.
TIMEOUT_S = 10.0


@dataclass
class Fleet:
    """Gateways that count together, each with a line of its own."""

    server: ValkeyServer
    tape: Tape = field(default_factory=Tape)
    gateways: list[SharedCounts] = field(default_factory=list[SharedCounts])

    @asynccontextmanager
    async def of(self, size: int) -> AsyncGenerator[list[SharedCounts]]:
        async with anyio.create_task_group() as tasks:
            for number in range(size):
                link = ValkeyLink(self.server.url, timeout_s=TIMEOUT_S)
                local = LocalCounts(self.tape, share_of=size)
                counts = SharedCounts(link, local, name=f"gateway-{number}")
                tasks.start_soon(counts.keep)
                await counts.tried.wait()
                self.gateways.append(counts)
            yield self.gateways
            tasks.cancel_scope.cancel()


@pytest.fixture(scope="module")
def server() -> Generator[ValkeyServer]:
    with running_valkey() as running:
        yield running


@pytest.fixture
def fleet(server: ValkeyServer) -> Fleet:
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return Fleet(server)


def a_place(**limits: Any) -> CountedPlace:
    return CountedPlace("department", "d", LimitSet(**limits))


async def admitted(counts: RequestCounts, place: CountedPlace, tokens: int = 0) -> Counted | None:
    try:
        return await counts.count([place], tokens=tokens)
    except RateLimited:
        return None


async def all_at_once(
    gateways: list[SharedCounts], place: CountedPlace, *, each: int, tokens: int = 0
) -> list[Counted]:
    """Every gateway asks so often, all at the same time; returns what was admitted."""
    found: list[Counted] = []

    async def ask(counts: SharedCounts) -> None:
        counted = await admitted(counts, place, tokens)
        if counted is not None:
            found.append(counted)

    async with anyio.create_task_group() as tasks:
        for _ in range(each):
            for counts in gateways:
                tasks.start_soon(ask, counts)
    return found


async def all_told(gateways: list[SharedCounts]) -> None:
    """Wait until Valkey knows of everything that has ended: a line answers in order."""
    for counts in gateways:
        (await counts.count([CountedPlace("key", "probe", LimitSet())], tokens=0)).end(tokens=0)


async def until(claim: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(60):
        while not await claim():
            await anyio.sleep(0.05)


async def lose(fleet: Fleet, place: CountedPlace) -> None:
    """Kill Valkey, and wait until every gateway has noticed."""
    fleet.server.stop()
    for counts in fleet.gateways:
        await until(lambda counts=counts: _is_alone(counts))


async def _is_alone(counts: SharedCounts) -> bool:
    counted = await counts.count([CountedPlace("key", "probe", LimitSet())], tokens=0)
    counted.end(tokens=0)
    return counts._is_away


async def come_back(fleet: Fleet) -> None:
    fleet.server.start()
    for counts in fleet.gateways:
        await until(lambda counts=counts: _is_joined(counts))


async def _is_joined(counts: SharedCounts) -> bool:
    return not await _is_alone(counts)


def test_four_gateways_together_admit_exactly_the_limit(fleet: Fleet) -> None:
    async def run() -> tuple[int, int]:
        async with fleet.of(4) as gateways:
            requests = await all_at_once(gateways, a_place(requests_per_minute=37), each=50)
            tokens = CountedPlace("key", "k", LimitSet(tokens_per_minute=1000))
            filled = await all_at_once(gateways, tokens, each=50, tokens=99)
            return len(requests), len(filled)

    assert anyio.run(run) == (37, 10)


def test_requests_at_once_are_counted_over_all_gateways_and_are_free_when_they_end(
    fleet: Fleet,
) -> None:
    async def run() -> list[int]:
        place, rounds = a_place(requests_at_once=7), list[int]()
        async with fleet.of(4) as gateways:
            for _ in range(3):
                found = await all_at_once(gateways, place, each=5)
                rounds.append(len(found))
                for counted in found:
                    counted.end(tokens=0)
                await all_told(gateways)
            return rounds

    assert anyio.run(run) == [7, 7, 7]


def test_tokens_that_one_gateway_gives_back_another_can_use(fleet: Fleet) -> None:
    async def run() -> tuple[bool, bool]:
        place = a_place(tokens_per_minute=100)
        async with fleet.of(2) as (first, second):
            counted = await first.count([place], tokens=90)
            before = await admitted(second, place, 50) is not None
            counted.end(tokens=50)
            await all_told([first])
            return before, await admitted(second, place, 50) is not None

    assert anyio.run(run) == (False, True)


def test_a_refusal_counts_nowhere_and_says_when_to_come_back(fleet: Fleet) -> None:
    async def run() -> RateLimited:
        wide = CountedPlace("organisation", "o", LimitSet(requests_per_minute=2))
        narrow = CountedPlace("key", "k", LimitSet(requests_per_minute=1))
        async with fleet.of(2) as (first, second):
            await first.count([wide, narrow], tokens=0)
            for _ in range(2):
                assert await admitted(second, narrow) is None
            with pytest.raises(RateLimited) as refused:
                await second.count([wide, narrow], tokens=0)
            counted = await second.count([wide], tokens=0)
            assert counted.allowances.requests is not None
            assert counted.allowances.requests.remaining == 0
            return refused.value

    refused = anyio.run(run)

    assert 55 < refused.retry_after_s <= 60.1
    assert refused.allowances.requests is not None
    assert (refused.allowances.requests.limit, refused.allowances.requests.remaining) == (1, 0)


def test_what_a_dead_gateway_ran_counts_no_more(fleet: Fleet) -> None:
    async def run() -> tuple[bool, bool]:
        place = a_place(requests_at_once=1)
        async with fleet.of(2) as (first, second):
            await first.count([place], tokens=0)
            before = await admitted(second, place) is not None
            with redis.Redis(port=fleet.server.port) as client:
                client.zrem(GATEWAYS, first._gateway)
            return before, await admitted(second, place) is not None

    assert anyio.run(run) == (False, True)


@pytest.mark.slow
def test_a_gateway_that_was_taken_for_dead_joins_again_with_what_it_runs(fleet: Fleet) -> None:
    async def run() -> bool:
        place = a_place(requests_at_once=4)
        async with fleet.of(2) as (first, second):
            for _ in range(3):
                await first.count([place], tokens=0)
            with redis.Redis(port=fleet.server.port) as client:
                client.zrem(GATEWAYS, first._gateway)
            await until(lambda: _has_rejoined(fleet, first))
            await second.count([place], tokens=0)
            return await admitted(second, place) is None

    assert anyio.run(run)


async def _has_rejoined(fleet: Fleet, counts: SharedCounts) -> bool:
    with redis.Redis(port=fleet.server.port) as client:
        return client.zscore(GATEWAYS, counts._gateway) is not None


def test_while_valkey_is_away_each_gateway_allows_its_share(server: ValkeyServer) -> None:
    fleet = Fleet(server)

    async def run() -> tuple[int, int]:
        place = CountedPlace("key", "away", LimitSet(requests_per_minute=20))
        async with fleet.of(4) as gateways:
            await lose(fleet, place)
            shares = [len(await all_at_once([each], place, each=20)) for each in gateways]
            fleet.tape.at += 61
            again = await all_at_once(gateways, place, each=20)
            await come_back(fleet)
            return max(shares), len(again)

    assert anyio.run(run) == (5, 20)


@pytest.mark.slow
def test_a_minute_in_which_valkey_goes_and_comes_back_empty_has_at_most_twice_the_limit(
    server: ValkeyServer,
) -> None:
    fleet = Fleet(server)

    async def run() -> tuple[list[int], int]:
        place = CountedPlace("key", "flaps", LimitSet(requests_per_minute=20))
        async with fleet.of(4) as gateways:
            # One gateway has had all of it: the others have not used their shares.
            rounds = [len(await all_at_once(gateways[:1], place, each=30))]
            for _ in range(2):
                await lose(fleet, place)
                rounds.append(len(await all_at_once(gateways, place, each=30)))
                await come_back(fleet)
                rounds.append(len(await all_at_once(gateways, place, each=30)))
            fleet.tape.at += 61
            with redis.Redis(port=server.port) as client:
                client.flushdb()
            for counts in gateways:
                await until(lambda counts=counts: _has_rejoined(fleet, counts))
            fleet.tape.at += 61
            return rounds, len(await all_at_once(gateways, place, each=30))

    rounds, later = anyio.run(run)

    assert rounds[0] == 20
    assert sum(rounds) <= 40
    assert later == 20


def test_requests_that_ended_while_valkey_was_away_run_no_more_when_it_is_back(
    server: ValkeyServer,
) -> None:
    fleet = Fleet(server)

    async def run() -> tuple[bool, int]:
        place = CountedPlace("key", "ends", LimitSet(requests_at_once=4))
        async with fleet.of(2) as (first, second):
            held = await all_at_once([first, second], place, each=2)
            await lose(fleet, place)
            for counted in held[:3]:
                counted.end(tokens=0)
            await come_back(fleet)
            fleet.tape.at += 61
            return await admitted(first, place) is not None, len(
                await all_at_once([first, second], place, each=4)
            )

    assert anyio.run(run) == (True, 2)


def test_who_leaves_while_being_counted_is_not_counted_as_running(fleet: Fleet) -> None:
    async def run() -> bool:
        place = a_place(requests_at_once=1)
        async with fleet.of(1) as (counts,):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await counts.count([place], tokens=0)
            await all_told([counts])
            return await admitted(counts, place) is not None

    assert anyio.run(run)


def age(server: ValkeyServer, ticks: int) -> None:
    """Let time pass in Valkey: everything that was counted becomes older."""
    with redis.Redis(port=server.port) as client:
        for key in client.keys(f"{PREFIX}*:k"):
            name = _text(key)
            old = client.lrange(name, 0, -1)
            client.delete(name)
            client.rpush(name, *(int(tick) - ticks for tick in old))
            window = name.removesuffix("k") + "w"
            fields = client.hgetall(window)
            client.delete(window)
            for found, value in fields.items():
                part = _text(found)
                moved = part if part in "RT" else f"{part[0]}{int(part[1:]) - ticks}"
                client.hset(window, moved, _text(value))


def _text(given: bytes | str) -> str:
    return given.decode() if isinstance(given, bytes) else given


small = st.none() | st.integers(0, 5)
limit_sets = st.builds(
    LimitSet,
    requests_per_minute=small,
    tokens_per_minute=st.none() | st.integers(0, 60),
    requests_at_once=small,
)
# No sum of these waits is near a minute: Valkey's clock goes on a little while the test runs.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 7), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 20), st.none() | st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([107, 307, 507]), st.none()),
    ),
    max_size=40,
)
Verdict = tuple[str, int | None]


async def _play(
    counts: RequestCounts,
    places: list[CountedPlace],
    script: list[tuple[str, int, int | None]],
    wait: Callable[[int, list[Counted]], Awaitable[None]],
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    running: list[Counted] = []
    for verb, number, tokens in script:
        if verb == "wait":
            await wait(number, running)
        elif verb == "end" and running:
            running.pop(number % len(running)).end(tokens=tokens)
        elif verb == "ask":
            over = [place for i, place in enumerate(places) if number & 1 << i]
            try:
                counted = await counts.count(over, tokens=tokens or 0)
            except (RateLimited, TokensOverLimit) as refused:
                verdicts.append((f"{type(refused).__name__}: {str(refused).split(';')[0]}", None))
            else:
                running.append(counted)
                left = counted.allowances.tokens
                verdicts.append(("admitted", left.remaining if left else None))
    return verdicts


@given(limits=st.lists(limit_sets, min_size=3, max_size=3), script=steps)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_valkey_decides_as_one_process_alone_would(
    limits: list[LimitSet], script: list[tuple[str, int, int | None]], fleet: Fleet
) -> None:
    places = [CountedPlace("key", name, each) for name, each in zip("abc", limits, strict=True)]
    tape = Tape()
    with redis.Redis(port=fleet.server.port) as client:
        client.flushall()
    shared_fleet = Fleet(fleet.server)

    async def wait(ticks: int, _: list[Counted]) -> None:
        tape.at += ticks / TICKS_PER_S

    async def wait_in_valkey(ticks: int, running: list[Counted]) -> None:
        await all_told(shared_fleet.gateways[-1:])
        age(fleet.server, ticks)
        for counted in running:
            assert isinstance(counted, SharedCounted)
            counted._ticks = [tick - ticks for tick in counted._ticks]

    async def alone() -> list[Verdict]:
        return await _play(LocalCounts(tape), places, script, wait)

    async def shared() -> list[Verdict]:
        async with shared_fleet.of(1) as (counts,):
            return await _play(counts, places, script, wait_in_valkey)

    assert anyio.run(shared) == anyio.run(alone)


@pytest.mark.parametrize(
    ("url", "verdict", "words"),
    [
        (None, "good", "none is counted in Valkey"),
        ("running", "good", "4 gateways count together"),
        ("redis://127.0.0.1:1/0", "bad", "Valkey does not answer"),
        ("http://127.0.0.1:1", "bad", "valkey_url"),
    ],
)
def test_the_doctor_says_whether_limits_are_counted_together(
    url: str | None,
    verdict: str,
    words: str,
    *,
    server: ValkeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STEELYARD_GATEWAY_COUNT", "4")
    if url is not None:
        monkeypatch.setenv("STEELYARD_VALKEY_URL", server.url if url == "running" else url)

    result = CliRunner().invoke(application, ["doctor", "--json"])

    found = {each["what"]: each for each in json.loads(result.output)}["limits"]
    assert found["verdict"] == verdict
    assert words in found["finding"]
