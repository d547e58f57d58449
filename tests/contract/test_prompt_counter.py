"""Prompts of upstreams that do not count: by their bytes where that is enough, and else by the
model's registered tokenizer."""

from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.gateway.prompt_counter import PromptCounter
from steelyard.gateway.upstreams.habits import ENGINE
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.money import Money
from tests.contract.test_upstream_audit import InProcessRecounter
from tests.world import INPUT_PRICE, OUTPUT_PRICE, USD, World

# One token a word by the vocabulary, five bytes and more a word by length.
WORDS = "hello " * 1000


def _not_counting(world: World, recounter: InProcessRecounter | None) -> None:
    world.organisation(dollars="1")
    world.stop_gateway()
    world.upstream = ScriptedUpstream(habits=replace(ENGINE, counts_at=None))
    world.start_gateway()
    if recounter is not None:
        world.admission = replace(world.admission, prompt_counter=PromptCounter(recounter))


@pytest.fixture
def counting(sqlite_world: World, tmp_path: Path) -> World:
    _not_counting(sqlite_world, InProcessRecounter(sqlite_world, tmp_path))
    return sqlite_world


def test_a_long_prompt_within_its_limit_is_counted_by_its_tokenizer_and_held_for_by_its_bytes(
    counting: World,
) -> None:
    answered = counting.chat(messages=[{"role": "user", "content": WORDS}], max_tokens=20)

    assert answered.status == 200
    counting.settle()
    (event,) = counting.events()
    held = Money(round(float(event.data.held) * 10**12), USD)
    # The bytes of text and role, and what a template adds; not the thousand tokens that were counted.
    assert held.picos == (6000 + 4 + 15) * INPUT_PRICE + 20 * OUTPUT_PRICE
    assert counting.differences() == []


def test_a_prompt_beyond_its_limit_is_refused_with_its_count(counting: World) -> None:
    answered = counting.chat(messages=[{"role": "user", "content": WORDS * 5}])

    assert answered.status == 413
    assert "the prompt has 500" in str(answered.error)
    assert counting.upstream.bodies == []


def test_without_a_tokenizer_a_prompt_that_may_be_too_long_is_refused(
    sqlite_world: World,
) -> None:
    _not_counting(sqlite_world, None)

    short = sqlite_world.chat()
    long = sqlite_world.chat(messages=[{"role": "user", "content": WORDS}])

    assert (short.status, long.status) == (200, 413)
    assert "nobody counts those of scripted" in str(long.error)


def test_a_thin_balance_is_held_for_by_the_bytes_where_nobody_counts(sqlite_world: World) -> None:
    _not_counting(sqlite_world, None)
    # Enough for the seven tokens of the prompt and one more, and too little for its bytes.
    sqlite_world.organisation("thin", dollars="0.00003")

    answered = sqlite_world.chat("thin", max_tokens=None)

    assert answered.status == 402
    assert sqlite_world.upstream.bodies == []
