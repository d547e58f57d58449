"""Speech is held for and charged by its characters, whatever the sound is like."""

from typing import Any

import pytest

from steelyard.gateway.upstreams.habits import SPEECH
from steelyard.gateway.upstreams.scripted import Script
from steelyard.gateway.workloads.speech import parse_speech
from tests.world import World

PRICES = """
schema: steelyard.price-book/v1
name: spoken
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: scripted
    prices:
      output.audio.characters: { amount: 15, per: 1M }
"""
TEXT = "Grüße, 你好!"
PRICE = 15_000_000


@pytest.fixture
def speaking(world: World) -> World:
    world.publish_prices(PRICES)
    world.organisation(dollars="1")
    world.upstream.paths = frozenset({SPEECH})
    world.upstream.script = Script(raw=b"ID3 sound")
    return world


def test_speech_is_charged_by_its_characters(speaking: World) -> None:
    answered = speaking.ask(SPEECH, model="scripted", input=TEXT, voice="any", speed=1.5)
    speaking.settle()

    (event,) = speaking.events()
    assert answered.client.body == b"ID3 sound"
    assert answered.client.headers["content-type"] == "audio/mpeg"
    assert answered.client.headers["x-steelyard-cost"] == event.data.amount == "0.00015"
    assert event.data.meters == {"output.audio.characters": str(len(TEXT))}
    assert speaking.upstream.bodies[-1]["speed"] == 1.5
    assert speaking.balance().total.picos == 10**12 - len(TEXT) * PRICE
    assert speaking.differences() == []


@pytest.mark.parametrize(
    "script", [Script(raw=b""), Script(raw=b'{"error": {"message": "no"}}'), Script(status=500)]
)
def test_what_was_not_spoken_costs_nothing(speaking: World, script: Script) -> None:
    speaking.upstream.script = script

    speaking.ask(SPEECH, model="scripted", input=TEXT)
    speaking.settle()

    assert speaking.balance().available.picos == 10**12
    assert speaking.differences() == []


def test_a_balance_that_does_not_reach_is_refused_before_a_word(speaking: World) -> None:
    answered = speaking.ask(SPEECH, model="scripted", input="x" * 4096)
    speaking.organisation("poor", dollars="0.0001")
    refused = speaking.ask(SPEECH, "poor", model="scripted", input="x" * 4096)

    assert answered.status == 200
    assert refused.error is not None
    assert refused.error.code == "insufficient_funds"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input": " "}, "empty_prompt"),
        ({"input": "x" * 4097}, "invalid_request"),
        ({"input": "x", "response_format": "aac"}, "invalid_request"),
        ({"input": "x", "stream_format": "sse"}, "invalid_request"),
        ({}, "invalid_request"),
    ],
)
def test_what_cannot_be_spoken_is_refused(speaking: World, body: dict[str, Any], code: str) -> None:
    answered = speaking.ask(SPEECH, **body)

    assert answered.error is not None
    assert answered.error.code == code
    assert speaking.upstream.bodies == []


def test_every_format_has_its_type() -> None:
    asked = parse_speech(b'{"input": "x", "response_format": "opus"}')

    assert asked.ways[0].answer_type == "audio/ogg"
