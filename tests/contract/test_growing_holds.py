"""Streams that are held for piece by piece: the hold grows, or the answer ends at what is held."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from steelyard.billing.lease_sizing import LeaseSize
from steelyard.gateway.cut_short import cut_short, output_tokens_so_far
from steelyard.gateway.upstreams.scripted import Script
from steelyard.gateway.workloads.answer import Answer, PricedUsage
from steelyard.gateway.workloads.chat_as_messages import ChatAsMessages
from steelyard.gateway.workloads.chat_as_response import ChatAsResponse
from steelyard.gateway.workloads.openai_answer import OpenAIAnswer
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.money import Money
from tests.world import INPUT_PRICE, NOW, OUTPUT_PRICE, USD, World

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PROMPT_TOKENS = 7
PROMPT_PICOS = PROMPT_TOKENS * INPUT_PRICE


@pytest.fixture
def growing(world: World) -> World:
    world.stop_gateway()
    world.hold_chunk_tokens = 2
    world.start_gateway()
    world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)
    return world


def _finish_reasons(chunks: list[dict[str, Any]]) -> list[str]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]


def test_a_hold_grows_with_its_answer(growing: World) -> None:
    growing.organisation(dollars="1")

    answered = growing.chat(stream=True)
    growing.settle()

    [event] = growing.events()
    assert answered.client.words() == list(WORDS)
    assert event.data.end_cause == "completed"
    # Of the twenty tokens that were asked for, those near the ten that came were held for.
    assert _picos(event.data.held) >= PROMPT_PICOS + 10 * OUTPUT_PRICE
    assert _picos(event.data.held) < 20 * OUTPUT_PRICE
    assert growing.differences() == []


def test_a_client_that_leaves_while_its_hold_grows_stops_nobody(growing: World) -> None:
    organisation = growing.organisation(dollars="1")
    key = growing.keys["acme"]
    scope = HoldScope(organisation.id, key.department.id, None, key.id, tokens_max=1)
    amount = Money(OUTPUT_PRICE, USD)
    first, second = (
        Hold(new_id(), organisation.id, amount, growing.outbox.source, NOW, "{}") for _ in range(2)
    )

    async def leave_and_ask_again() -> Hold:
        with anyio.fail_after(20):
            hold = await growing.holding.place(first, scope)
            # The desk cannot write as long as somebody else does.
            with growing.stores.books.write() as unit, anyio.move_on_after(0.05):
                unit.lock_holds([hold.id])
                await growing.holding.grow(hold, amount=amount + amount, tokens_max=2)
            return await growing.holding.place(second, scope)

    assert anyio.run(leave_and_ask_again).id == second.id


@pytest.mark.parametrize("is_leased", [False, True], ids=["books", "lease"])
def test_an_answer_ends_where_the_money_ends(growing: World, is_leased: bool) -> None:
    # A prompt counted exactly, and six tokens of answer.
    balance = PROMPT_PICOS + 6 * OUTPUT_PRICE
    growing.organisation(dollars=f"0.{balance:012}")
    if is_leased:
        growing.top_up(growing.tenants["acme"], "0.01")
        for _ in range(2):
            growing.chat(stream=True)
        growing.keep_leases()
        [pocket] = growing.holding.wallet.pockets.values()
        [lease] = pocket.leases
        # What is left of the lease covers the first hold and four tokens more.
        first = PROMPT_PICOS * 4 + 2 * OUTPUT_PRICE
        lease.hold("others", LeaseSize(lease.free_picos - first - 4 * OUTPUT_PRICE, 0))

    answered = growing.chat(stream=True)
    growing.settle()

    event = growing.events()[-1]
    words = answered.client.words()
    assert event.data.end_cause == "hold_growth_denied"
    assert (event.data.lease_id is not None) == is_leased
    assert 2 <= len(words) < 10
    assert words == list(WORDS[: len(words)])
    assert _finish_reasons(answered.client.chunks()) == ["length"]
    assert answered.client.events[-1] == "[DONE]"
    usage = answered.client.usage()
    assert usage["completion_tokens"] == len(words)
    assert _picos(event.data.amount) == PROMPT_PICOS + len(words) * OUTPUT_PRICE
    assert _picos(event.data.amount) <= _picos(event.data.held)
    assert growing.differences() == []


def _picos(decimal: str) -> int:
    whole, _, fraction = decimal.partition(".")
    return int(whole) * 10**12 + int(fraction.ljust(12, "0"))


BODY = b'{"model": "scripted", "max_tokens": 20, "stream": true, "input": "x", "messages": []}'
ANSWERS: dict[str, tuple[Callable[[], Answer], str]] = {
    "chat": (OpenAIAnswer, '"finish_reason":"length"'),
    "messages": (lambda: ChatAsMessages(BODY), '"stop_reason":"max_tokens"'),
    "responses": (lambda: ChatAsResponse(BODY), '"reason":"max_output_tokens"'),
}


@pytest.mark.parametrize("surface", ANSWERS)
def test_every_surface_says_that_the_answer_ended_at_a_limit(surface: str) -> None:
    make, said = ANSWERS[surface]
    answer, meter = make(), AnswerMeter()
    events = list(answer.read_event(_chunk("one", completion_tokens=1), meter))
    meter.deliver([b"one"], reported=meter.reported, at=NOW)
    refused = _chunk("two", completion_tokens=2)

    events += cut_short(answer, refused, meter)

    priced = PricedUsage(meter.delivered, Money(114, USD), "event")
    text = b"".join((*events, *answer.write_end(priced, wants_usage=True))).decode()
    assert said in text
    assert "two" not in text
    assert output_tokens_so_far(refused) == 2
    assert '"output_tokens":1' in text or '"completion_tokens":1' in text


def _chunk(text: str, *, completion_tokens: int) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    usage = {"prompt_tokens": 7, "completion_tokens": completion_tokens}
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "scripted"}
    return json.dumps({**chunk, "choices": [choice], "usage": usage}).encode()
