"""The answer cache: the same request is made once, shown twice, and charged as the book says."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from steelyard.gateway.answer_cache import AnswerCache
from steelyard.gateway.answer_store import SqliteAnswerStore
from steelyard.gateway.kept_answers import AnswerStore, KeptAnswer, Place, StillRunning
from steelyard.gateway.shared_answers import REST_S, ValkeyAnswerStore
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ids import new_id
from tests.unit.test_outbox import wait_until
from tests.valkey_server import ValkeyServer, running_valkey
from tests.world import INPUT_PRICE, OUTPUT_PRICE, PRICE_BOOK, World

WORDS = ("one", "two", "three")
COST = 7 * INPUT_PRICE + 3 * OUTPUT_PRICE
PRICED_HITS = PRICE_BOOK.replace("name: world", "name: hits") + (
    "      cache.hit: { amount: 3, per: 1M }\n      call: { amount: 1, per: 1M }\n"
)


@pytest.fixture(scope="module")
def valkey() -> Generator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@contextmanager
def in_file(world: World) -> Generator[AnswerStore]:
    store = SqliteAnswerStore(
        world.settings.data_dir / "cache.db",
        owner="world",
        clock=world.clock,
        keep_s=3600,
        bytes_max=1024 * 1024,
    )
    yield store
    store.close()


@contextmanager
def in_valkey(server: ValkeyServer, *, lock_s: float = 60) -> Generator[ValkeyAnswerStore]:
    store = ValkeyAnswerStore(
        server.url, timeout_s=10, keep_s=3600, lock_s=lock_s, monotonic=time.monotonic
    )
    yield store
    store.close()


@pytest.fixture(params=["file", "valkey"])
def cached(world: World, request: pytest.FixtureRequest) -> Generator[World]:
    with ExitStack() as stack:
        if request.param == "file":
            store = stack.enter_context(in_file(world))
        else:
            server: ValkeyServer = request.getfixturevalue("valkey")
            store = stack.enter_context(in_valkey(server))
        world.stop_gateway()
        world.cache = AnswerCache(store, world.clock, wait_s=10)
        world.start_gateway()
        world.organisation(dollars="1")
        world.keys["acme"] = replace(world.keys["acme"], cache_ttl_s=60)
        world.upstream.script = Script(words=WORDS, prompt_tokens=7)
        yield world


def _made(world: World) -> int:
    return len(world.upstream.bodies)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_same_request_is_made_once_and_charged_once(cached: World, stream: bool) -> None:
    first, second = cached.chat(stream=stream), cached.chat(stream=stream)
    cached.settle()

    assert _made(cached) == 1
    assert first.client.headers["x-steelyard-cache"] == "miss"
    assert second.client.headers["x-steelyard-cache"] == "hit"
    assert second.client.headers["age"] == "0"
    if stream:
        assert second.client.words() == first.client.words() == list(WORDS)
    else:
        assert second.client.document["choices"] == first.client.document["choices"]
    usage = second.client.usage()
    assert (usage["completion_tokens"], usage["cost"]) == (3, "0")
    assert usage["saved"] == first.client.usage()["cost"]
    causes = {event.data.end_cause: event.data for event in cached.events()}
    assert set(causes) == {"completed", "cache_hit"}
    assert causes["cache_hit"].saved == usage["saved"]
    assert cached.balance().total.picos == 10**12 - COST
    assert cached.balance().held.picos == 0
    assert cached.differences() == []


def test_a_hit_has_the_price_that_the_book_gives_it(cached: World) -> None:
    cached.publish_prices(PRICED_HITS)
    cached.chat()
    cached.chat()
    cached.settle()

    first, second = cached.events()
    assert dict(second.data.meters) == {"cache.hit": "1"}
    assert dict(first.data.meters) == {"call": "1", "input.text": "7", "output.text": "3"}
    assert cached.balance().total.picos == 10**12 - (COST + 1_000_000) - 3_000_000
    assert cached.differences() == []


@pytest.mark.parametrize(
    "other",
    [{"max_tokens": 19}, {"temperature": 0.5}, {"stream": True}, {"cache_control": "no-cache"}],
    ids=str,
)
def test_another_request_is_made_anew(cached: World, other: dict[str, Any]) -> None:
    cached.chat()
    cached.chat(**other)

    assert _made(cached) == 2


def test_an_answer_grows_old(cached: World) -> None:
    cached.chat()
    cached.clock.advance(seconds=59)
    assert cached.chat().client.headers["age"] == "59"
    cached.clock.advance(seconds=1)
    assert cached.chat().client.headers["x-steelyard-cache"] == "miss"
    assert cached.chat(cache_control="max-age=0").client.headers["x-steelyard-cache"] == "miss"
    assert cached.chat(cache_control="no-store").client.headers["x-steelyard-cache"] == "bypass"
    assert _made(cached) == 4


def test_nobody_else_gets_the_answer(cached: World) -> None:
    cached.chat()
    cached.organisation("globex", dollars="1")
    cached.keys["globex"] = replace(cached.keys["globex"], cache_ttl_s=60)
    assert cached.chat("globex").client.headers["x-steelyard-cache"] == "miss"
    cached.keys["acme"] = replace(cached.keys["acme"], cache_ttl_s=None)
    assert "x-steelyard-cache" not in cached.chat().client.headers
    assert _made(cached) == 3


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        ({"fails_after_words": 2}, {"stream": True}),
        ({"status": 500}, {}),
        ({"reports_usage": False}, {}),
        ({}, {"stream": True, "leaves_after": 1}),
    ],
    ids=str,
)
def test_what_is_not_whole_is_not_kept(
    cached: World, script: dict[str, Any], asked: dict[str, Any]
) -> None:
    cached.upstream.script = Script(words=WORDS, prompt_tokens=7, **script)
    cached.chat(**asked)
    cached.upstream.script = Script(words=WORDS, prompt_tokens=7)
    again = {name: value for name, value in asked.items() if name != "leaves_after"}

    answered = cached.chat(**again)

    assert answered.client.headers["x-steelyard-cache"] == "miss"
    assert answered.status == 200


def test_a_request_that_is_refused_leaves_the_place_free(cached: World) -> None:
    poor = cached.organisation("poor")
    cached.keys["poor"] = replace(cached.keys["poor"], cache_ttl_s=60)
    assert cached.chat("poor").status == 402

    cached.top_up(poor, "1")

    assert cached.chat("poor").client.headers["x-steelyard-cache"] == "miss"


def test_requests_at_the_same_time_are_computed_once(cached: World) -> None:
    async def ask_all() -> list[str]:
        found: list[str] = []

        async def ask() -> None:
            answered = await cached.chat_async("acme", {})
            found.append(answered.client.headers["x-steelyard-cache"])

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        return found

    found = anyio.run(ask_all)
    cached.settle()

    assert sorted(found) == ["hit"] * 4 + ["miss"]
    assert _made(cached) == 1
    assert cached.balance().total.picos == 10**12 - COST
    assert cached.differences() == []


PLACE = Place("acme", "0" * 64)
ANSWER = KeptAnswer(PLACE.name, {"kept-at": "2026-01-01T00:00:00Z"}, (b"{}",))


def fresh_place() -> Place:
    return Place(new_id(), PLACE.name)


def test_of_several_machines_one_makes_the_answer_and_all_have_it(valkey: ValkeyServer) -> None:
    place = fresh_place()
    with in_valkey(valkey) as one, in_valkey(valkey) as other:
        assert one.begin(place, digest=place.name) is None
        assert other.begin(place, digest=place.name) == StillRunning(place.name)

        one.keep(place, ANSWER)

        assert other.begin(place, digest=place.name) == ANSWER
        other.forget(place)
        assert other.begin(place, digest=place.name) is None
        assert one.begin(place, digest=place.name) == StillRunning(place.name)


def test_a_machine_that_dies_keeps_nobody_waiting_and_takes_no_lock_of_another(
    valkey: ValkeyServer,
) -> None:
    place = fresh_place()
    with in_valkey(valkey, lock_s=0.05) as dead, in_valkey(valkey) as other:
        assert dead.begin(place, digest=place.name) is None
        wait_until(lambda: other.begin(place, digest=place.name) is None)

        dead.give_up(place)

        assert dead.begin(place, digest=place.name) == StillRunning(place.name)
        other.give_up(place)
        assert dead.begin(place, digest=place.name) is None


def test_while_valkey_is_away_every_request_is_made_and_it_is_not_asked_each_time(
    world: World,
) -> None:
    now = [0.0]
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], cache_ttl_s=60)
    with running_valkey() as server:
        store = ValkeyAnswerStore(
            server.url, timeout_s=10, keep_s=3600, lock_s=60, monotonic=lambda: now[0]
        )
        world.stop_gateway()
        world.cache = AnswerCache(store, world.clock, wait_s=10)
        world.start_gateway()
        asked = [world.chat(), world.chat()]
        server.stop()
        asked += [world.chat(), world.chat()]
        server.start()
        asked.append(world.chat())
        now[0] = REST_S
        asked += [world.chat(), world.chat()]
        store.close()

    said = [answered.client.headers["x-steelyard-cache"] for answered in asked]
    assert [answered.status for answered in asked] == [200] * 7
    # It came back empty, and a moment after the failure it is believed to be away still.
    assert said == ["miss", "hit", "bypass", "bypass", "bypass", "miss", "hit"]
    world.settle()
    assert world.differences() == []
