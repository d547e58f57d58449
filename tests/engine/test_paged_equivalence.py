"""Cached, preempted, salted or crowded: each sequence still gets what it gets alone."""

import random
from pathlib import Path
from typing import Any

import pytest
from engine_runs import generate_alone, running_engine, submit
from transformers import AutoModelForCausalLM

from steelyard.engine.block_pool import BLOCK_TOKENS
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.sequence import End


@pytest.fixture(scope="module")
def weights(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


def make_ids(count: int, *, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(3, 380) for _ in range(count)]


def test_a_cached_beginning_changes_no_token(tiny: LoadedModel, weights: Any) -> None:
    shared = make_ids(100, seed=1)
    prompts = [shared + make_ids(n, seed=n) for n in (1, 5, 17, 30)] + [shared, shared[:96]]
    alone = [generate_alone(weights, prompt, max_tokens=25) for prompt in prompts]

    with running_engine(tiny, max_batch_size=3, prefill_tokens_per_step=40) as engine:
        first = submit(engine, shared, max_tokens=2).finish()
        runs = [submit(engine, prompt, max_tokens=25) for prompt in prompts]
        together = [run.finish().token_ids for run in runs]
        stats = engine.stats()

    assert first.sequence is not None
    assert first.sequence.cached_tokens == 0
    assert together == alone
    assert [cached(run) for run in runs] == [96, 96, 96, 96, 96, 88]
    assert stats.cached_tokens == sum(cached(run) for run in runs)
    assert stats.blocks_held == 0


def test_an_answer_is_found_again_when_the_conversation_goes_on(
    tiny: LoadedModel, weights: Any
) -> None:
    prompt = make_ids(20, seed=3)

    with running_engine(tiny) as engine:
        first = submit(engine, prompt, max_tokens=40, ignore_eos=True).finish()
        longer = prompt + first.token_ids + make_ids(4, seed=4)
        second = submit(engine, longer, max_tokens=20).finish()

    assert second.token_ids == generate_alone(weights, longer, max_tokens=20)
    # The last answered token was never fed.
    assert cached(second) == (len(prompt) + 39) // BLOCK_TOKENS * BLOCK_TOKENS


def test_what_is_sent_back_for_want_of_blocks_loses_nothing(
    tiny: LoadedModel, weights: Any
) -> None:
    prompts = [make_ids(30, seed=10 + i) for i in range(6)]
    alone = [generate_alone(weights, prompt, max_tokens=60) for prompt in prompts]

    with running_engine(tiny, max_batch_size=6, max_batch_tokens=160) as engine:
        runs = [submit(engine, prompt, max_tokens=60) for prompt in prompts]
        together = [run.finish().token_ids for run in runs]
        stats = engine.stats()

    assert together == alone
    assert stats.preemptions > 0
    assert stats.blocks_held == 0
    assert stats.prompt_tokens == 30 * 6


def test_a_cancelled_sequence_gives_its_blocks_back_within_a_step(tiny: LoadedModel) -> None:
    with running_engine(tiny, max_batch_size=1) as engine:
        endless = submit(engine, make_ids(50, seed=5), max_tokens=1900, ignore_eos=True)
        endless.wait_for(5)
        assert endless.sequence is not None
        engine.cancel(endless.sequence)
        told = len(endless.token_ids)
        end = endless.finish().end
        stats = engine.stats()

    assert end is End.CANCELLED
    assert len(endless.token_ids) <= told + 200
    assert stats.blocks_held == 0


def test_without_caching_nothing_is_found(tiny: LoadedModel) -> None:
    prompt = make_ids(64, seed=6)

    with running_engine(tiny, is_caching=False) as engine:
        runs = [submit(engine, prompt, max_tokens=3, ignore_eos=True).finish() for _ in range(2)]

    assert [cached(run) for run in runs] == [0, 0]
    assert runs[0].token_ids == runs[1].token_ids


def test_the_time_of_the_steps_is_shared_out_to_the_last_microsecond(tiny: LoadedModel) -> None:
    with running_engine(tiny, max_batch_size=3) as engine:
        runs = [submit(engine, make_ids(9 * n, seed=n), max_tokens=9 * n) for n in range(1, 7)]
        dropped = submit(engine, make_ids(5, seed=7), max_tokens=1500, ignore_eos=True)
        dropped.wait_for(1)
        assert dropped.sequence is not None
        engine.cancel(dropped.sequence)
        shares = [run.finish().sequence.time for run in (*runs, dropped)]  # pyright: ignore[reportOptionalMemberAccess]
        stats = engine.stats()

    assert sum(share.engine_us for share in shares) == stats.engine_us > 0
    assert sum(share.device_us for share in shares) == stats.device_us > 0
    assert all(share.engine_us > 0 for share in shares)


def cached(run: Any) -> int:
    return run.sequence.cached_tokens
