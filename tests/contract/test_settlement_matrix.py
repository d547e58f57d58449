"""Every row of the settlement matrix, on every database: what is charged when an answer ends so."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import anyio
import msgspec
import pytest

from steelyard.billing.settlement_matrix import MATRIX
from steelyard.eventlog.attempt_records import EventDraft
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.gateway import recovery
from steelyard.gateway.batches.records import BatchesUnavailable
from steelyard.gateway.recovery_process import DraftingProcess
from steelyard.gateway.upstreams.scripted import Script
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.chat import parse_chat
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

WORDS = ("one", "two", "three", "four", "five")
PROMPT_TOKENS = 7


@dataclass(frozen=True)
class Row:
    """A way for an answer to end, and the tokens of answer that are charged for it."""

    cause: str
    script: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: dict[str, Any] = field(default_factory=dict[str, Any])
    charged_words: int | None = None

    @property
    def picos(self) -> int:
        if self.charged_words is None:
            return 0
        return PROMPT_TOKENS * INPUT_PRICE + self.charged_words * OUTPUT_PRICE

    def __str__(self) -> str:
        return f"{self.cause}-{'stream' if self.asked.get('stream') else 'whole'}"


STREAM = {"stream": True}
ROWS = [
    Row("completed", charged_words=5),
    Row("completed", asked=STREAM, charged_words=5),
    Row("stopped_by_limit", {"finish_reason": "length"}, charged_words=5),
    Row("stopped_by_limit", {"finish_reason": "length"}, STREAM, charged_words=5),
    Row("client_left", asked={**STREAM, "leaves_after": 3}, charged_words=3),
    Row(
        "client_left",
        {"hangs_after_words": 2},
        {**STREAM, "leaves_after": 2},
        charged_words=2,
    ),
    Row("client_left_before_first_token", {"hangs_after_words": 0}, {**STREAM, "leaves_after": 0}),
    Row("client_left_before_first_token", {"hangs_after_words": 3}, {"leaves_after": 0}),
    Row("upstream_refused", {"status": 500}),
    Row("upstream_refused", {"status": 503}, STREAM),
    Row("upstream_failed_before_first_token", {"fails_after_words": 0}, STREAM),
    Row("upstream_failed_before_first_token", {"fails_after_words": 3}),
    Row("upstream_failed", {"fails_after_words": 4}, STREAM, charged_words=4),
    Row("usage_missing", {"reports_usage": False}),
    Row("usage_missing", {"reports_usage": False}, STREAM),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_answer_is_charged_as_its_row_of_the_matrix_says(row: Row, world: World) -> None:
    world.organisation(dollars="1")
    before = world.balance().total
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS, **row.script)

    world.chat(**row.asked)
    world.settle()

    assert [event.data.end_cause for event in world.events()] == [row.cause]
    assert before.picos - world.balance().available.picos == row.picos
    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_an_attempt_whose_gateway_died_is_charged_nothing(world: World) -> None:
    world.organisation(dollars="1")
    before = world.balance()
    attempt = leave_a_hold_open(world)
    world.stop_gateway()
    world.start_gateway()

    count = world.recover()
    world.settle()

    assert count == 1
    assert [(e.id, e.data.end_cause) for e in world.events()] == [(attempt, "gateway_crashed")]
    assert world.balance() == before
    assert world.differences() == []


@pytest.mark.parametrize(
    ("policy", "stream", "picos"),
    [
        ("drain", False, PROMPT_TOKENS * INPUT_PRICE + 4 * OUTPUT_PRICE),
        ("drain", True, PROMPT_TOKENS * INPUT_PRICE + 4 * OUTPUT_PRICE),
        ("delivered", True, PROMPT_TOKENS * INPUT_PRICE + 4 * OUTPUT_PRICE),
        ("delivered", False, 0),
        ("prompt_only", True, PROMPT_TOKENS * INPUT_PRICE),
        ("free", True, 0),
    ],
)
def test_after_a_crash_the_upstreams_own_log_says_what_is_charged(
    policy: Any, stream: bool, picos: int, world: World
) -> None:
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], disconnect_policy=policy)
    attempt = leave_a_hold_open(world, stream=stream)
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 4}
    world.upstream.logged[attempt] = usage
    world.stop_gateway()
    world.start_gateway()

    world.recover()
    world.settle()

    (event,) = world.events()
    assert (event.id, event.data.end_cause) == (attempt, "gateway_crashed")
    assert json.loads(bytes(event.data.upstream_usage)) == usage
    assert world.balance().total.picos == 10**12 - picos
    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_an_attempt_that_its_upstream_is_still_at_work_on_costs_the_others_nothing(
    world: World,
) -> None:
    world.organisation(dollars="1")
    ended, running = (leave_a_hold_open(world, stream=True) for _ in range(2))
    world.upstream.logged[ended] = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 4}
    world.upstream.running.add(running)
    world.stop_gateway()
    world.start_gateway()

    count = world.recover()
    world.settle()

    charged = {event.id: event.data.amount for event in world.events()}
    assert (count, charged[running]) == (2, "0")
    assert Decimal(charged[ended]) * 10**12 == PROMPT_TOKENS * INPUT_PRICE + 4 * OUTPUT_PRICE
    assert world.balance().held.picos == 0
    assert world.differences() == []


@pytest.mark.parametrize("drafted_by", ["the gateway", "a process", "a process that dies"])
def test_more_attempts_than_are_asked_about_at_once_are_all_closed(
    world: World, monkeypatch: pytest.MonkeyPatch, drafted_by: str
) -> None:
    monkeypatch.setattr(recovery, "ATTEMPTS_AT_ONCE", 3)
    if drafted_by != "the gateway":
        monkeypatch.setattr(recovery, "PROCESS_FROM", 1)
    if drafted_by == "a process that dies":
        monkeypatch.setattr(recovery, "DraftingProcess", DyingDraftingProcess)
    world.organisation(dollars="1")
    attempts = [leave_a_hold_open(world, stream=True) for _ in range(10)]
    for attempt in attempts[::2]:
        world.upstream.logged[attempt] = {"prompt_tokens": 1, "completion_tokens": 1}
    world.stop_gateway()
    world.start_gateway()

    count = world.recover()
    world.settle()

    charged = {event.id for event in world.events() if event.data.amount != "0"}
    assert count == len(world.events()) == 10
    assert charged == set(attempts[::2])
    assert world.differences() == []


def test_an_attempt_that_was_closed_before_the_crash_keeps_its_event(world: World) -> None:
    world.organisation(dollars="1")
    world.chat()
    world.stop_gateway()
    world.start_gateway()

    count = world.recover()
    world.settle()

    assert count == 0
    assert [event.data.end_cause for event in world.events()] == ["completed"]
    assert world.differences() == []


def test_every_row_of_the_matrix_is_tried_here_or_named() -> None:
    tried_elsewhere = {
        "gateway_crashed",
        "gateway_stopped",
        "event_log_failed",
        "hold_growth_denied",
        "cache_hit",
    }

    tried = {row.cause for row in ROWS}

    assert tried | tried_elsewhere == set(MATRIX)


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_that_is_stopped_closes_what_it_was_answering(stream: bool, world: World) -> None:
    world.organisation(dollars="1")
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS, hangs_after_words=3)

    async def stop_in_the_middle() -> None:
        with anyio.move_on_after(0.5):
            await world.chat_async("acme", {"stream": stream})

    anyio.run(stop_in_the_middle)
    world.settle()

    picos = PROMPT_TOKENS * INPUT_PRICE + 3 * OUTPUT_PRICE if stream else 0
    assert [event.data.end_cause for event in world.events()] == ["gateway_stopped"]
    assert world.balance().total.picos == 10**12 - picos
    assert world.balance().held.picos == 0
    assert world.differences() == []


def test_a_client_whose_socket_takes_nothing_more_has_left(world: World) -> None:
    world.organisation(dollars="1")
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)

    world.chat(stream=True, stops_reading_after=2)
    world.settle()

    assert [event.data.end_cause for event in world.events()] == ["client_left"]
    assert world.events()[0].data.meters["output.text"] == "2"
    assert world.differences() == []


class DyingDraftingProcess(DraftingProcess):
    """Dies after its first part."""

    def take(self) -> Sequence[EventDraft]:
        drafts = super().take()
        self._process.kill()
        return drafts


def leave_a_hold_open(world: World, *, stream: bool = False) -> str:
    """Place a hold as admission does, and die."""
    messages = [{"role": "user", "content": "hello"}]
    asked = {"model": "scripted", "messages": messages, "max_tokens": 9, "stream": stream}
    body = json.dumps(asked).encode()

    async def admit() -> str:
        await world.prices.snapshot.refresh()
        await world.limits.snapshot.refresh()
        await world.admission.catalog.refresh()
        received = world.admission.receive(parse_chat(body), world.keys["acme"], request_id="r")
        admitted = await world.admission.admit(received, received.plan.first())
        return admitted.hold.id

    return anyio.run(admit)


@pytest.mark.parametrize("kind", [EventLogUnavailable, BatchesUnavailable, OSError])
def test_an_answer_that_cannot_be_kept_before_its_charge_costs_nothing(
    world: World, kind: type[Exception]
) -> None:
    world.organisation(dollars="1")
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)
    body = {"model": "scripted", "messages": [{"role": "user", "content": "?"}], "max_tokens": 9}

    async def keep(event_id: str, answer: bytes) -> None:
        raise kind("the disk is full")

    def parse() -> Asked:
        return msgspec.structs.replace(
            parse_chat(json.dumps(body).encode()), keep=keep, is_repeatable=True
        )

    with suppress(OSError):
        world.ask_parsed("acme", parse)
    world.settle()

    [event] = world.events()
    assert event.data.amount == "0"
    assert world.balance().held.picos == 0
    assert world.differences() == []
