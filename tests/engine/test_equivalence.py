"""The engine gives each sequence exactly what transformers' generate gives it alone."""

import random
from pathlib import Path
from typing import Any

import pytest
from engine_runs import generate_alone, running_engine, submit
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from steelyard.engine.engine import Engine
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.runners import PagedRunner, SeparateRunner
from steelyard.engine.sequence import End


@pytest.fixture(scope="module")
def weights(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


def make_prompts(count: int, *, seed: int, longest: int = 90) -> list[list[int]]:
    chance = random.Random(seed)
    return [
        [chance.randrange(3, 380) for _ in range(chance.randint(1, longest))] for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_of_sequences_gives_the_tokens_of_each_alone(
    tiny: LoadedModel, weights: Any, seed: int
) -> None:
    prompts = make_prompts(10, seed=seed)
    lengths = [random.Random(seed + i).randint(1, 50) for i in range(10)]
    alone = [
        generate_alone(weights, p, max_tokens=n) for p, n in zip(prompts, lengths, strict=True)
    ]

    with running_engine(tiny, max_batch_size=4, prefill_tokens_per_step=32) as engine:
        runs = [submit(engine, p, max_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
        together = [run.finish().token_ids for run in runs]

    assert together == alone


def test_sequences_that_join_and_leave_midway_do_not_change_the_others(
    tiny: LoadedModel, weights: Any
) -> None:
    steady, short, late = make_prompts(3, seed=99)
    alone = [
        generate_alone(weights, p, max_tokens=n) for p, n in [(steady, 80), (short, 5), (late, 40)]
    ]

    with running_engine(tiny) as engine:
        first = submit(engine, steady, max_tokens=80)
        first.wait_for(min(10, len(alone[0])))
        second = submit(engine, short, max_tokens=5)
        cancelled = submit(engine, late * 3, max_tokens=500, ignore_eos=True)
        cancelled.wait_for(3)
        third = submit(engine, late, max_tokens=40)
        assert cancelled.sequence is not None
        engine.cancel(cancelled.sequence)
        together = [run.finish().token_ids for run in (first, second, third)]

    assert together == alone
    assert cancelled.finish().end is End.CANCELLED


def test_a_prompt_longer_than_a_step_is_the_same_prompt(tiny: LoadedModel, weights: Any) -> None:
    prompt = make_prompts(1, seed=5, longest=900)[0] * 2
    alone = generate_alone(weights, prompt, max_tokens=12)

    with running_engine(tiny, prefill_tokens_per_step=17) as engine:
        run = submit(engine, prompt, max_tokens=12).finish()

    assert run.token_ids == alone


def test_a_sliding_window_model_is_decoded_row_by_row_and_stays_exact(
    tiny: LoadedModel, tiny_folder: Path
) -> None:
    windowed = make_windowed_model(tiny, tiny_folder)
    weights = windowed._model
    prompts = make_prompts(4, seed=7)
    alone = [generate_alone(weights, prompt, max_tokens=30) for prompt in prompts]

    with running_engine(windowed, max_batch_size=3, prefill_tokens_per_step=16) as engine:
        runs = [submit(engine, prompt, max_tokens=30) for prompt in prompts]
        together = [run.finish().token_ids for run in runs]

    assert isinstance(Engine(windowed)._runner, SeparateRunner)
    assert isinstance(Engine(tiny)._runner, PagedRunner)
    assert together == alone


def make_windowed_model(tiny: LoadedModel, tiny_folder: Path) -> LoadedModel:
    from transformers import AutoTokenizer

    config = MistralConfig(
        vocab_size=tiny.vocabulary_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=24,
        initializer_range=0.3,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LoadedModel(
        MistralForCausalLM(config).eval(),
        AutoTokenizer.from_pretrained(tiny_folder),
        name="windowed",
        folder=tiny_folder,
        max_model_len=1024,
        facts=tiny.facts,
        defaults=tiny.defaults,
    )
