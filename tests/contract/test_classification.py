"""Work that is counted in calls and items: classes, moderations; and ranks, by their tokens."""

from typing import Any

import pytest

from steelyard.gateway.upstreams.habits import CHAT, CLASSIFICATIONS, MODERATIONS, RERANK
from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import read_decimal
from tests.pictures import draw, empty_png, part
from tests.world import INPUT_PRICE, World

BOOK = """
schema: steelyard.price-book/v1
name: items
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    prices: {{ {prices} }}
"""
BY_CALL = "call: { amount: 0.5, per: 1k }"
BY_ITEM = "item: { amount: 0.2, per: 1k }"
BY_SIZE = "item: { amount: 0.2, per: 1k, tiers: [{ above: 2, amount: 0.1 }] }"
BY_TOKEN = "input.text: { amount: 2, per: 1M }"
TEXTS = ["billing is wrong", "login fails", "refund please"]


def _publish(world: World, *prices: str) -> None:
    world.publish_prices(BOOK.format(prices=", ".join(prices)))


@pytest.mark.parametrize(
    ("prices", "count", "cost"),
    [
        ([BY_CALL], 3, 500_000_000),
        ([BY_ITEM], 3, 3 * 200_000_000),
        ([BY_SIZE], 2, 2 * 200_000_000),
        ([BY_SIZE], 3, 3 * 100_000_000),
        ([BY_CALL, BY_ITEM], 1, 700_000_000),
        ([BY_ITEM, BY_TOKEN], 2, 2 * 200_000_000 + 7 * INPUT_PRICE),
        ([BY_TOKEN], 3, 7 * INPUT_PRICE),
    ],
    ids=["call", "item", "below the tier", "above it", "call+item", "item+token", "token"],
)
def test_a_batch_costs_what_its_calls_items_and_tokens_cost(
    prices: list[str], count: int, cost: int, world: World
) -> None:
    world.organisation(dollars="1")
    _publish(world, *prices)

    answered = world.ask(CLASSIFICATIONS, model="scripted", input=TEXTS[:count])
    world.settle()

    assert answered.error is None
    labels = [entry["label"] for entry in answered.client.document["data"]]
    assert labels == ["billing", "login", "refund"][:count]
    assert answered.client.usage()["items"] == count
    assert read_decimal(answered.client.usage()["cost"]) == cost
    assert world.balance().total.picos == 10**12 - cost
    assert world.differences() == []


def test_a_price_of_text_alone_does_not_make_items_free(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    _publish(sqlite_world, "output.text: { amount: 2, per: 1M }")

    answered = sqlite_world.ask(CLASSIFICATIONS, input=TEXTS)

    assert answered.error is not None
    assert answered.error.code == "price_not_found"


def test_the_hold_is_for_the_dearest_tier_and_the_rest_returns(world: World) -> None:
    world.organisation(dollars="0.0006")
    _publish(world, BY_SIZE)

    answered = world.ask(CLASSIFICATIONS, input=TEXTS)
    world.settle()

    assert answered.status == 200
    assert world.events()[-1].data.held == "0.0006"
    assert world.balance().total.picos == 300_000_000


def test_a_pico_too_little_is_402_and_names_the_items(world: World) -> None:
    world.organisation(dollars="0.000599999999")
    _publish(world, BY_ITEM)

    answered = world.ask(CLASSIFICATIONS, input=TEXTS)

    assert answered.status == 402
    assert "3 items" in str(answered.error)
    assert world.upstream.bodies == []


def test_embeddings_on_a_thin_balance_need_no_price_for_output(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="0.000000000001")
    _publish(sqlite_world, BY_TOKEN)

    answered = sqlite_world.ask("/v1/embeddings", input="some text")

    assert answered.status == 402


def test_moderation_without_reported_usage_is_counted_by_its_results(world: World) -> None:
    world.organisation(dollars="1")
    _publish(world, BY_ITEM)
    world.upstream.script = Script(reports_usage=False)

    answered = world.ask(MODERATIONS, input=["all good", "flagged words"])
    world.settle()

    assert [result["flagged"] for result in answered.client.document["results"]] == [False, True]
    assert read_decimal(answered.client.usage()["cost"]) == 2 * 200_000_000
    assert world.differences() == []


def test_parts_of_a_moderation_are_one_item(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    _publish(sqlite_world, BY_ITEM)
    parts: Any = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]

    answered = sqlite_world.ask(MODERATIONS, input=parts)

    assert answered.client.usage()["items"] == 1


def test_an_answer_for_fewer_items_than_asked_charges_nothing(world: World) -> None:
    world.organisation(dollars="1")
    _publish(world, BY_ITEM)
    world.upstream.script = Script(raw=b'{"data": [{"label": "a"}], "usage": {"items": 3}}')

    answered = world.ask(CLASSIFICATIONS, input=TEXTS)
    world.settle()

    assert answered.status == 502
    assert world.balance().total.picos == 10**12
    assert world.differences() == []


def test_ranks_are_priced_by_the_tokens_that_are_read(world: World) -> None:
    world.organisation(dollars="1")
    _publish(world, BY_TOKEN)
    world.upstream.script = Script(usage={"total_tokens": 11})

    answered = world.ask(RERANK, query="who pays?", documents=["a", {"text": "b"}], top_n=1)
    world.settle()

    assert answered.client.document["results"] == [{"index": 0, "relevance_score": 1.0}]
    assert read_decimal(answered.client.usage()["cost"]) == 11 * INPUT_PRICE
    assert world.differences() == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (CLASSIFICATIONS, {}, "empty_prompt"),
        (CLASSIFICATIONS, {"input": []}, "empty_prompt"),
        (CLASSIFICATIONS, {"input": ["a", ""]}, "empty_prompt"),
        (CLASSIFICATIONS, {"input": [1]}, "invalid_request"),
        (CLASSIFICATIONS, {"input": ["a"] * 2_049}, "invalid_request"),
        (CLASSIFICATIONS, {"input": "\ud800"}, "invalid_json"),
        (MODERATIONS, {"input": []}, "empty_prompt"),
        (MODERATIONS, {"input": [{"type": "text", "text": ""}]}, "empty_prompt"),
        (MODERATIONS, {"input": ["a", 2]}, "invalid_request"),
        (RERANK, {"documents": ["a"]}, "empty_prompt"),
        (RERANK, {"query": "a", "documents": []}, "empty_prompt"),
        (RERANK, {"query": "a", "documents": ["b"], "top_n": 0}, "invalid_request"),
    ],
)
def test_bad_input_is_refused_before_anything_is_held(
    path: str, body: dict[str, Any], code: str, sqlite_world: World
) -> None:
    sqlite_world.organisation(dollars="1")

    answered = sqlite_world.ask(path, **body)

    assert answered.error is not None
    assert answered.error.code == code
    assert sqlite_world.upstream.bodies == []
    assert sqlite_world.balance().held.picos == 0


def test_a_model_that_does_other_work_refuses_by_name(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    sqlite_world.upstream.paths = frozenset({CHAT})

    answered = sqlite_world.ask(CLASSIFICATIONS, input=TEXTS)

    assert answered.error is not None
    assert answered.error.code == "surface_not_served"


@pytest.mark.parametrize(
    ("prices", "count", "cost"),
    [
        ([BY_CALL], 3, 500_000_000),
        ([BY_ITEM], 3, 3 * 200_000_000),
        ([BY_SIZE], 2, 2 * 200_000_000),
        ([BY_SIZE], 3, 3 * 100_000_000),
    ],
    ids=["call", "item", "below the tier", "above it"],
)
def test_pictures_cost_what_their_calls_and_items_cost(
    prices: list[str], count: int, cost: int, world: World
) -> None:
    world.organisation(dollars="1")
    _publish(world, *prices)
    world.upstream.script = Script(usage={"prompt_tokens": 0, "total_tokens": 0})
    pictures = [part(draw("disc")), part(draw("square", kind="JPEG"), kind="jpeg")] * 2

    answered = world.ask(CLASSIFICATIONS, model="scripted", input=pictures[:count])
    world.settle()

    assert answered.error is None
    assert answered.client.usage()["items"] == count
    assert world.upstream.bodies[-1]["input"] == pictures[:count]
    assert world.balance().total.picos == 10**12 - cost
    assert world.differences() == []


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ([part(empty_png(100_000, 100_000))], 413, "image_too_large"),
        ([part(draw("disc")), part(empty_png(1, 4097))], 413, "image_too_large"),
        ([part(b"GIF89a")], 415, "picture_unsupported"),
        ([part(b"")], 415, "picture_unsupported"),
        ([part(b"\xff\xd8\xff\xe0\0\x10JFIF")], 415, "picture_unsupported"),
        ([{"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}], 400, None),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}], 400, None),
        ([part(draw("disc")), "a text"], 400, None),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused_before_anything_is_held(
    given: list[Any], status: int, code: str | None, sqlite_world: World
) -> None:
    sqlite_world.organisation(dollars="1")
    _publish(sqlite_world, BY_ITEM)

    answered = sqlite_world.ask(CLASSIFICATIONS, model="scripted", input=given)
    sqlite_world.settle()

    assert answered.status == status
    assert answered.error is not None
    assert answered.error.code == (code or "invalid_request")
    assert sqlite_world.upstream.bodies == []
    assert sqlite_world.events() == []
