"""Each sequence draws with its own numbers from the tokens it allows."""

import torch
from engine_runs import running_engine, submit

from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.sampler import Context, Sampler, Sampling

CPU = torch.device("cpu")
NOTHING = Context([], [])
LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -4.0])


def draw_many(sampling: Sampling, *, count: int = 400) -> set[int]:
    sampler = Sampler(sampling, device=CPU)
    return {sampler.draw(LOGITS, NOTHING).token_id for _ in range(count)}


def test_temperature_zero_takes_the_best_token() -> None:
    drawn = draw_many(Sampling(temperature=0.0))

    assert drawn == {1}


def test_top_k_allows_exactly_k_tokens() -> None:
    drawn = draw_many(Sampling(temperature=2.0, top_k=3, seed=1))

    assert drawn == {1, 2, 3}


def test_top_p_allows_the_fewest_tokens_that_reach_it() -> None:
    first_two = LOGITS.softmax(-1)[1:3].sum().item()

    drawn = draw_many(Sampling(temperature=1.0, top_p=first_two - 0.01, seed=1))

    assert drawn == {1, 2}


def test_a_tiny_top_p_still_allows_the_best_token() -> None:
    drawn = draw_many(Sampling(temperature=1.0, top_p=1e-9, seed=1))

    assert drawn == {1}


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(tiny: LoadedModel) -> None:
    seeded = Sampling(temperature=1.0, top_p=0.9, seed=42)
    prompt = tiny.encode_text("def add(first")
    with running_engine(tiny) as engine:
        alone = submit(engine, prompt, sampling=seeded, max_tokens=30).finish()

    with running_engine(tiny) as engine:
        crowd = [submit(engine, prompt * 2, sampling=Sampling(temperature=1.0)) for _ in range(3)]
        beside = submit(engine, prompt, sampling=seeded, max_tokens=30).finish()
        for run in crowd:
            run.finish()

    assert beside.token_ids == alone.token_ids


def test_two_seeds_give_two_answers(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("The quick")

    with running_engine(tiny) as engine:
        runs = [submit(engine, prompt, sampling=Sampling(temperature=1.0, seed=i)) for i in (1, 2)]
        first, second = (run.finish().token_ids for run in runs)

    assert first != second
