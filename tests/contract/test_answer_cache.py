"""The answer cache: the same request is made once, shown twice, and charged as the book says."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import anyio
import pytest

from steelyard.gateway.answer_cache import AnswerCache
from steelyard.gateway.answer_store import SqliteAnswerStore
from steelyard.gateway.upstreams.scripted import Script
from tests.world import INPUT_PRICE, OUTPUT_PRICE, PRICE_BOOK, World

WORDS = ("one", "two", "three")
COST = 7 * INPUT_PRICE + 3 * OUTPUT_PRICE
PRICED_HITS = PRICE_BOOK.replace("name: world", "name: hits") + (
    "      cache.hit: { amount: 3, per: 1M }\n      call: { amount: 1, per: 1M }\n"
)


@pytest.fixture
def cached(world: World) -> Generator[World]:
    store = SqliteAnswerStore(
        world.settings.data_dir / "cache.db",
        owner="world",
        clock=world.clock,
        keep_s=3600,
        bytes_max=1024 * 1024,
    )
    world.stop_gateway()
    world.cache = AnswerCache(store, world.clock, wait_s=10)
    world.start_gateway()
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], cache_ttl_s=60)
    world.upstream.script = Script(words=WORDS, prompt_tokens=7)
    yield world
    store.close()


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
