"""Pictures: held and charged by a formula over prompt, steps, size and count; stopped ones by the
steps that were taken."""

import json
from typing import Any

import pytest

from steelyard.entrypoints.openai_api.surfaces import SERVED, Surface
from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import read_decimal
from tests.world import World

PRICES = """
schema: steelyard.price-book/v1
name: {name}
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    {prices}
"""
BY_FORMULA = """
    equivalent_tokens:
      output.image.equivalent_tokens: >-
        input.text + ceil(output.image.pixels * output.image.steps / 1024)
    prices:
      output.image.equivalent_tokens: { amount: 5, per: 1M }
"""
BY_WIDTH_AND_HEIGHT = """
    equivalent_tokens:
      output.image.equivalent_tokens: >-
        input.text + output.image.count * output.image.steps
        * ceil(output.image.width * output.image.height / 1024)
    prices:
      output.image.equivalent_tokens: { amount: 5, per: 1M }
"""
BY_IMAGE = "prices: { output.image.count: { amount: 1, per: 1k } }"
PROMPT_TOKENS, STEPS, PIXELS = 7, 4, 64 * 64
PICO = 5_000_000


def prepare(world: World, prices: str = BY_FORMULA, **script: Any) -> None:
    name = f"images-{abs(hash(prices))}"
    world.publish_prices(PRICES.format(name=name, prices=prices.strip()))
    world.organisation(dollars="1")
    world.upstream.script = Script(prompt_tokens=PROMPT_TOKENS, steps=STEPS, **script)


def draw(world: World, client: dict[str, Any] | None = None, **fields: Any) -> Any:
    surface = SERVED["/v1/images/generations"]
    assert isinstance(surface, Surface)
    asked = {"model": "scripted", "prompt": "a red disc", "size": "64x64", "steps": STEPS, **fields}
    return world.ask_parsed(
        "acme", lambda: surface.parse(json.dumps(asked).encode()), **(client or {})
    )


def charged(world: World) -> int:
    world.settle()
    assert world.differences() == []
    assert world.balance().held.picos == 0
    return sum(read_decimal(event.data.amount) for event in world.events())


def equivalent(steps: int, *, count: int = 1) -> int:
    return PROMPT_TOKENS + count * PIXELS * steps // 1024


@pytest.mark.parametrize(
    ("prices", "count", "picos"),
    [
        (BY_FORMULA, 1, equivalent(STEPS) * PICO),
        (BY_FORMULA, 3, equivalent(STEPS, count=3) * PICO),
        (BY_WIDTH_AND_HEIGHT, 3, equivalent(STEPS, count=3) * PICO),
        (BY_IMAGE, 2, 2 * 10**9),
    ],
)
def test_pictures_cost_what_the_formula_says(
    prices: str, count: int, picos: int, world: World
) -> None:
    prepare(world, prices)

    answered = draw(world, n=count)

    assert len(answered.client.document["data"]) == count
    assert read_decimal(answered.client.document["usage"]["cost"]) == picos
    assert charged(world) == picos
    assert [event.data.end_cause for event in world.events()] == ["completed"]


def test_the_hold_is_for_every_step_of_every_picture(world: World) -> None:
    prepare(world)

    draw(world, n=2, size="640x320", steps=50)
    world.settle()

    most = len("a red disc") + 2 + 2 * 640 * 320 * 50 // 1024
    assert read_decimal(world.events()[0].data.held) == most * PICO
    (sent,) = world.upstream.bodies
    assert (sent["steps"], sent["pixels_max"]) == (50, 2 * 640 * 320)


def test_a_stream_tells_each_step_and_ends_with_the_priced_picture(world: World) -> None:
    prepare(world)

    answered = draw(world, n=2, stream=True)

    kinds = [chunk["type"].rpartition(".")[2] for chunk in answered.client.chunks()]
    assert kinds == ["step"] * (STEPS - 1) + ["completed"] * 2
    priced = ["usage" in chunk for chunk in answered.client.chunks()]
    assert priced == [False] * STEPS + [True]
    assert charged(world) == equivalent(STEPS, count=2) * PICO


@pytest.mark.parametrize(
    ("prices", "script", "cause", "picos"),
    [
        (BY_FORMULA, {"hangs_after_words": 2}, "client_left", equivalent(2) * PICO),
        (BY_IMAGE, {"hangs_after_words": 2}, "client_left", 0),
        (BY_FORMULA, {"hangs_after_words": 0}, "client_left_before_first_token", 0),
        (BY_FORMULA, {"fails_after_words": 3}, "upstream_failed", equivalent(3) * PICO),
        (BY_FORMULA, {"status": 500}, "upstream_refused", 0),
    ],
)
def test_a_drawing_that_is_stopped_is_charged_for_the_steps_that_were_taken(
    prices: str, script: dict[str, Any], cause: str, picos: int, world: World
) -> None:
    prepare(world, prices, **script)

    draw(world, {"leaves_after_events": script.get("hangs_after_words")}, stream=True)

    assert charged(world) == picos
    assert [event.data.end_cause for event in world.events()] == [cause]


def test_a_server_that_reports_nothing_is_charged_by_the_pictures_that_came(world: World) -> None:
    prepare(world, BY_IMAGE, reports_usage=False)

    draw(world, n=2)

    assert charged(world) == 2 * 10**9


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"size": "100000x100000"}, 413, "image_too_large"),
        ({"size": "99999999999999999x1"}, 413, "image_too_large"),
        ({"size": "0x64"}, 400, "invalid_request"),
        ({"size": "huge"}, 400, "invalid_request"),
        ({"n": 11}, 400, "invalid_request"),
        ({"n": 0}, 400, "invalid_request"),
        ({"steps": 1000}, 400, "invalid_request"),
        ({"prompt": "  "}, 400, "empty_prompt"),
        ({"prompt": 7}, 400, "invalid_request"),
        ({"response_format": "url"}, 400, "invalid_request"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_held(
    fields: dict[str, Any], status: int, code: str, world: World
) -> None:
    prepare(world)

    answered = draw(world, **fields)

    assert (answered.status, answered.error.code) == (status, code)
    assert world.upstream.bodies == []
    assert charged(world) == 0


def test_a_price_book_that_names_no_unit_of_pictures_refuses(world: World) -> None:
    world.organisation(dollars="1")

    answered = draw(world)

    assert (answered.status, answered.error.code) == (503, "price_not_found")
