"""Transcripts: held by the length of the sound, charged in the unit that the price book names."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from steelyard.gateway.upstreams.scripted import Script
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.form import FormFile, FormWriter
from steelyard.gateway.workloads.transcription import parse_transcription
from steelyard.money import read_decimal
from tests.recordings import record
from tests.world import Answered, World

PRICES = """
schema: steelyard.price-book/v1
name: {name}
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    prices:
      {prices}
"""
WORDS = ("Good", " morning", ",", " everybody")
CHARACTERS = len("".join(WORDS))
SOUND = record("wav", seconds=2.5)
SECOND_PRICE = 100_000_000
BY_SECOND = "input.audio.seconds: { amount: 100, per: 1M }"
BY_CHARACTER = "output.transcript.characters: { amount: 10, per: 1M }"
BY_TOKEN = "output.transcript.tokens: { amount: 20, per: 1M }"


def asked(sound: bytes = SOUND, **fields: Any) -> Asked:
    writer = FormWriter.of(FormFile("meeting.wav", "audio/wav", sound))
    body = writer.write({"model": "scripted", **fields})
    return parse_transcription(body, writer.content_type)


def transcribe(world: World, client: Mapping[str, Any] | None = None, **fields: Any) -> Answered:
    return world.ask_parsed("acme", partial(asked, **fields), **(client or {}))


def prepare(world: World, prices: str = BY_SECOND, *, dollars: str = "1", **script: Any) -> None:
    name = f"sound-{abs(hash(prices))}"
    world.publish_prices(PRICES.format(name=name, prices=prices))
    world.organisation(dollars=dollars)
    world.upstream.script = Script(words=WORDS, seconds=2.5, **script)


def charged(world: World) -> int:
    world.settle()
    assert world.differences() == []
    assert world.balance().held.picos == 0
    return sum(read_decimal(event.data.amount) for event in world.events())


@pytest.mark.parametrize(
    ("prices", "meters", "amount"),
    [
        (BY_SECOND, {"input.audio.seconds": "3"}, "0.0003"),
        (BY_CHARACTER, {"output.transcript.characters": f"{CHARACTERS}"}, "0.00023"),
        (BY_TOKEN, {"output.transcript.tokens": "4"}, "0.00008"),
        (
            f"{BY_SECOND}\n      {BY_TOKEN}",
            {"input.audio.seconds": "3", "output.transcript.tokens": "4"},
            "0.00038",
        ),
    ],
)
def test_the_price_book_says_in_which_unit_a_transcript_is_charged(
    prices: str, meters: dict[str, str], amount: str, world: World
) -> None:
    prepare(world, prices)

    answered = transcribe(world)
    world.settle()

    (event,) = world.events()
    assert answered.client.document["text"] == "Good morning, everybody"
    assert answered.client.document["usage"]["cost"] == amount
    assert (event.data.meters, event.data.amount) == (meters, amount)
    assert event.data.end_cause == "completed"
    assert world.differences() == []


def test_the_hold_is_for_the_seconds_that_the_header_tells(world: World) -> None:
    prepare(world, dollars="0.000299")

    refused = transcribe(world)
    world.top_up(world.tenants["acme"], "0.000001")
    served = transcribe(world)
    world.settle()

    assert refused.status == 402
    assert "3 input.audio.seconds" in str(refused.error)
    assert served.error is None
    assert world.events()[0].data.held == "0.0003"
    assert world.balance().total.picos == 0


def test_an_upstream_that_keeps_to_bounds_gets_them(world: World) -> None:
    prepare(world)

    transcribe(world, language="en", response_format="srt")

    (sent,) = world.upstream.bodies
    assert sent["file"] == SOUND
    assert (sent["audio_seconds_max"], sent["language"]) == ("3", "en")
    assert sent["response_format"] == "verbose_json"


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        ("text", "text/plain", "Good morning, everybody\n"),
        ("srt", "application/x-subrip", "1\n00:00:00,000 --> 00:00:00,625\nGood\n\n2\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:00.625\nGood\n\n"),
    ],
)
def test_text_and_subtitles_are_written_and_charged_as_json_is(
    wanted: str, kind: str, text: str, world: World
) -> None:
    prepare(world)

    answered = transcribe(world, response_format=wanted)

    assert answered.client.body.decode().startswith(text)
    assert answered.client.headers["content-type"].startswith(kind)
    assert answered.client.headers["x-steelyard-cost"] == "0.0003"
    assert charged(world) == 3 * SECOND_PRICE


def test_a_stream_ends_with_the_text_and_its_price(world: World) -> None:
    prepare(world)

    answered = transcribe(world, stream="true")

    last = answered.client.chunks()[-1]
    assert answered.client.words() == list(WORDS)
    assert all("usage" not in chunk for chunk in answered.client.chunks()[:-1])
    assert (last["type"], last["text"]) == ("transcript.text.done", "Good morning, everybody")
    assert last["usage"]["cost"] == "0.0003"
    assert answered.client.events[-1] == "[DONE]"
    assert charged(world) == 3 * SECOND_PRICE


@pytest.mark.parametrize(
    ("script", "client", "cause", "seconds"),
    [
        ({}, {"leaves_after": 2}, "client_left", 2),
        ({"fails_after_words": 2}, {}, "upstream_failed", 2),
        ({"fails_after_words": 0}, {}, "upstream_failed_before_first_token", 0),
        ({"reports_usage": False}, {}, "usage_missing", 0),
        ({"status": 500}, {}, "upstream_refused", 0),
    ],
)
def test_a_stream_that_breaks_off_is_charged_by_what_was_heard_until_then(
    script: dict[str, Any], client: dict[str, Any], cause: str, seconds: int, world: World
) -> None:
    prepare(world, **script)

    transcribe(world, client, stream="true")

    assert charged(world) == seconds * SECOND_PRICE
    assert [event.data.end_cause for event in world.events()] == [cause]


def test_a_price_book_that_names_no_unit_of_sound_refuses(world: World) -> None:
    world.organisation(dollars="1")

    answered = transcribe(world)
    world.settle()

    assert answered.status == 503
    assert "input.audio.seconds" in str(answered.error)
    assert world.events() == []


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{}", "application/json", 415, "unsupported_media_type"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400, "invalid_form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "file_missing"),
        (None, "", 400, "file_empty"),
        (SOUND[:-9], "", 400, "audio_truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "", 415, "audio_unsupported"),
    ],
)
def test_bad_input_is_refused_before_anything_is_held(
    body: bytes | None, kind: str, status: int, code: str, world: World
) -> None:
    prepare(world)
    if not kind:
        writer = FormWriter.of(FormFile("meeting.wav", "audio/wav", body or b""))
        body, kind = writer.write({"model": "scripted"}), writer.content_type

    answered = world.ask_parsed("acme", lambda: parse_transcription(body or b"", kind))

    assert answered.error is not None
    assert (answered.status, answered.error.code) == (status, code)
    assert world.upstream.bodies == []
    assert charged(world) == 0


@pytest.mark.parametrize(
    "fields",
    [{"response_format": "html"}, {"stream": "maybe"}, {"stream": "1", "response_format": "srt"}],
)
def test_a_field_that_cannot_be_is_refused(fields: dict[str, Any], world: World) -> None:
    prepare(world)

    answered = transcribe(world, **fields)

    assert answered.status == 400
    assert world.upstream.bodies == []
