"""What servers do that they should not: each with the charge that is right, and what the client
sees."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from steelyard.gateway.upstreams.scripted import Script
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
WHOLE = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE
DONE = "data: [DONE]\n\n"


def event(**fields: Any) -> str:
    return f"data: {json.dumps({'id': 'x', **fields}, ensure_ascii=False)}\n\n"


def said(text: str, **fields: Any) -> str:
    return event(choices=[{"index": 0, "delta": {"content": text}}], **fields)


def counted(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


STOP = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USED = event(choices=[], usage=USAGE)
PLAIN = said("Grüß ") + said("dich 🙂") + STOP + USED + DONE


@dataclass(frozen=True)
class Odd:
    """A stream as it comes, and what becomes of it."""

    name: str
    raw: str
    cause: str = "completed"
    picos: int = WHOLE
    words: list[str] = field(default_factory=lambda: ["Grüß ", "dich 🙂"])
    write_bytes: int = 65_536

    def __str__(self) -> str:
        return self.name


ODD = [
    Odd("UTF-8 split in every place", PLAIN, write_bytes=1),
    Odd("CRLF", PLAIN.replace("\n", "\r\n"), write_bytes=3),
    Odd("CR alone", PLAIN.replace("\n", "\r")),
    Odd("byte order mark", "\ufeff" + PLAIN),
    Odd("comments", ": keep-alive\n\n" + PLAIN.replace("data:", ": x\ndata:")),
    Odd("named events", PLAIN.replace("data:", "event: chunk\nid: 1\nretry: 5\ndata:")),
    Odd("empty data", "data: \n\n" + PLAIN),
    Odd("null error", PLAIN.replace('"id": "x"', '"id": "x", "error": null')),
    Odd("DONE missing", PLAIN.removesuffix(DONE)),
    Odd("the last empty line missing", PLAIN.removesuffix(DONE).removesuffix("\n")),
    Odd(
        "cut before the end",
        said("Grüß ") + said("dich 🙂"),
        "upstream_failed_before_first_token",
        0,
    ),
    Odd("usage missing", PLAIN.replace(USED, ""), "usage_missing", 0),
    Odd("usage null", PLAIN.replace(USED, event(choices=[], usage=None)), "usage_missing", 0),
    Odd(
        "zero usage",
        PLAIN.replace(
            USED, event(choices=[], usage=counted(0) | {"prompt_tokens": 0, "total_tokens": 0})
        ),
        picos=0,
    ),
    Odd(
        "usage in every chunk",
        said("Grüß ", usage=counted(1)) + said("dich 🙂", usage=counted(2)) + STOP + DONE,
    ),
    Odd(
        "usage beside the end",
        said("Grüß ")
        + said("dich 🙂")
        + event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=USAGE)
        + DONE,
    ),
    Odd("no choices at first", event(choices=[], prompt_filter_results=[]) + PLAIN),
    Odd(
        "error in the middle, counts unknown",
        said("Grüß ") + event(error={"message": "out of memory"}),
        "upstream_failed_before_first_token",
        0,
        ["Grüß "],
    ),
    Odd(
        "error in the middle, counts known",
        said("Grüß ", usage=counted(1)) + event(error={"message": "out of memory"}),
        "upstream_failed",
        7 * INPUT_PRICE + OUTPUT_PRICE,
        ["Grüß "],
    ),
    Odd(
        "not JSON in the middle",
        said("Grüß ", usage=counted(1)) + "data: {nonsense\n\n",
        "upstream_failed",
        7 * INPUT_PRICE + OUTPUT_PRICE,
        ["Grüß "],
    ),
    Odd(
        "usage that contradicts itself",
        said("Grüß ") + event(choices=[], usage=counted(-1)),
        "upstream_failed_before_first_token",
        0,
        ["Grüß "],
    ),
    Odd("nothing", "", "upstream_failed_before_first_token", 0, []),
    Odd("DONE alone", DONE, "usage_missing", 0, []),
    Odd(
        "a huge chunk",
        said("y" * 1_000_000) + said("dich 🙂") + STOP + USED + DONE,
        words=["y" * 1_000_000, "dich 🙂"],
    ),
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_an_odd_stream_is_charged_rightly(odd: Odd, sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.upstream.script = Script(raw=odd.raw.encode(), raw_write_bytes=odd.write_bytes)

    client = world.chat(stream=True).client
    world.settle()

    assert [event.data.end_cause for event in world.events()] == [odd.cause]
    assert 10**12 - world.balance().total.picos == odd.picos
    assert world.balance().held.picos == 0
    assert client.words() == odd.words
    is_whole = odd.cause in {"completed", "usage_missing"}
    assert ("[DONE]" in client.events) == is_whole
    if is_whole:
        assert client.usage()["cost"] == ("0" if not odd.picos else "0.000034")
    assert world.differences() == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "overloaded"}}',
        b"<html>busy</html>",
        b"",
        b"[]",
        b'{"choices": "none"}',
        b'{"choices": [], "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 5}}}',
    ],
)
def test_a_good_status_over_a_bad_body_is_charged_nothing(body: bytes, sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    world.upstream.script = Script(raw=body)

    answered = world.chat()
    world.settle()

    assert answered.status == 502
    assert [e.data.end_cause for e in world.events()] == ["upstream_failed_before_first_token"]
    assert world.balance().total.picos == 10**12
    assert world.differences() == []
