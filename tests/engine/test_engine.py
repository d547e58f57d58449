"""What the step loop promises: ends, counts, cancellation, limits and survival."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import wait_until
from engine_runs import GREEDY, running_engine, submit
from structlog.testing import capture_logs

from steelyard.clock import SystemClock
from steelyard.engine.engine import Engine
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.refusals import EngineOverloaded, EngineStepFailed, EngineStopped
from steelyard.engine.request_log import RequestLog, digest_token_ids
from steelyard.engine.sampler import Sampling
from steelyard.engine.sequence import End, Sequence


class BreakableModel:
    """The tiny model, with a switch that makes steps with a certain number of rows fail."""

    def __init__(self, model: LoadedModel) -> None:
        self._inner = model
        self.fails_with_rows: int | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def line_logits(self, token_ids: torch.Tensor, **more: Any) -> torch.Tensor:
        if len(more["step_layout"].rows) == self.fails_with_rows:
            raise RuntimeError("out of memory, for example")
        return self._inner.line_logits(token_ids, **more)


def test_length_ends_an_answer_at_exactly_max_tokens(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")

    with running_engine(tiny) as engine:
        run = submit(engine, prompt, max_tokens=7, ignore_eos=True).finish()

    assert run.end is End.LENGTH
    assert len(run.token_ids) == 7


def test_the_end_of_sequence_token_is_counted_but_not_shown(tiny: LoadedModel) -> None:
    eos = tiny.facts.eos_token_ids[0]
    prompt = tiny.encode_text("hello")

    with running_engine(tiny) as engine:
        runs = [
            submit(engine, prompt, max_tokens=1500, sampling=Sampling(temperature=2.0, seed=i))
            for i in range(8)
        ]
        ended = [run for run in runs if run.finish().end is End.STOP]

    assert ended
    assert all(run.token_ids.count(eos) == 1 for run in ended)
    assert all(run.token_ids[-1] == eos for run in ended)
    assert all(run.text == tiny.decode(run.token_ids[:-1]) for run in ended)


def test_a_stop_string_cuts_the_text_and_counts_all_tokens(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")
    with running_engine(tiny) as engine:
        whole = submit(engine, prompt, max_tokens=60, ignore_eos=True).finish()
    stop = whole.text[20:24]

    with running_engine(tiny) as engine:
        cut = submit(engine, prompt, max_tokens=60, ignore_eos=True, stop=(stop,)).finish()

    assert cut.end is End.STOP
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in tiny.decode(cut.token_ids)


def test_a_cancelled_sequence_frees_its_slot_for_the_next(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")

    with running_engine(tiny, max_batch_size=1) as engine:
        endless = submit(engine, prompt, max_tokens=2000, ignore_eos=True)
        endless.wait_for(5)
        waiting = submit(engine, prompt, max_tokens=3)
        assert endless.sequence is not None
        engine.cancel(endless.sequence)
        finished = waiting.finish()

    assert endless.finish().end is End.CANCELLED
    assert len(endless.token_ids) < 2000
    assert finished.end in (End.LENGTH, End.STOP)


def test_a_waiting_sequence_can_be_cancelled(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")

    with running_engine(tiny, max_batch_size=1) as engine:
        endless = submit(engine, prompt, max_tokens=2000, ignore_eos=True)
        waiting = submit(engine, prompt)
        assert waiting.sequence is not None
        engine.cancel(waiting.sequence)
        end = waiting.finish().end
        assert endless.sequence is not None
        engine.cancel(endless.sequence)
        endless.finish()
        stats = engine.stats()

    assert end is End.CANCELLED
    assert (stats.running, stats.waiting, stats.cancelled) == (0, 0, 2)


def test_a_full_waiting_room_refuses(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")

    with running_engine(tiny, max_batch_size=1, max_waiting=1) as engine:
        for _ in range(2):
            submit(engine, prompt, max_tokens=2000, ignore_eos=True)
        with pytest.raises(EngineOverloaded) as refusal:
            submit(engine, prompt)

    assert refusal.value.code == "engine_overloaded"


def test_a_failed_step_fails_its_sequences_and_the_engine_goes_on(tiny: LoadedModel) -> None:
    model = BreakableModel(tiny)
    prompt = tiny.encode_text("hello")

    with running_engine(model, max_batch_size=2) as engine:  # pyright: ignore[reportArgumentType]
        pair = [submit(engine, prompt, max_tokens=2000, ignore_eos=True) for _ in range(2)]
        for run in pair:
            run.wait_for(3)
        model.fails_with_rows = 2
        failures = [run.finish().seen[-1].failure for run in pair]
        survivor = submit(engine, prompt, max_tokens=4, ignore_eos=True).finish()

    assert all(isinstance(failure, EngineStepFailed) for failure in failures)
    assert survivor.end is End.LENGTH


def test_stopping_ends_what_is_open_and_takes_nothing_new(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")
    with running_engine(tiny, max_batch_size=1) as engine:
        runs = [submit(engine, prompt, max_tokens=2000, ignore_eos=True) for _ in range(2)]

    ends = [run.finish().end for run in runs]

    assert ends == [End.CANCELLED] * 2
    assert not engine.is_alive
    with pytest.raises(EngineStopped):
        submit(engine, prompt)


def test_a_listener_that_breaks_loses_only_its_own_sequence(tiny: LoadedModel) -> None:
    prompt = tiny.encode_text("hello")

    with capture_logs() as lines, running_engine(tiny) as engine:
        bad = submit_to_broken_listener(engine, prompt)
        good = submit(engine, prompt, max_tokens=30, ignore_eos=True).finish()
        wait_until(lambda: bad.end is not None)

    assert good.end is End.LENGTH
    assert bad.end is End.CANCELLED
    told = [line for line in lines if line["event"] == "engine.listener_gone"]
    assert [line["request_id"] for line in told] == ["broken"]
    assert "the loop has closed" in told[0]["reason"]


def test_the_request_log_holds_the_counts_and_the_digest(tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "requests.jsonl"
    prompt = tiny.encode_text("hello")
    log = RequestLog(path, clock=SystemClock())

    with running_engine(tiny, request_log=log) as engine:
        run = submit(engine, prompt, max_tokens=9, ignore_eos=True).finish()
    log.close()

    opened, line = [json.loads(line) for line in path.read_text().splitlines()]
    assert (opened["event"], line["event"]) == ("opened", "ended")
    assert opened["prompt_tokens"] == len(prompt)
    assert line["prompt_tokens"] == len(prompt)
    assert line["completion_tokens"] == 9
    assert line["token_ids_sha256"] == digest_token_ids(run.token_ids)
    assert line["end"] == "length"


def submit_to_broken_listener(engine: Engine, prompt: list[int]) -> Sequence:
    from steelyard.engine.sequence import Delta, SequenceRequest

    def deliver(_delta: Delta) -> None:
        raise RuntimeError("the loop has closed")

    request = SequenceRequest(
        request_id="broken",
        prompt_token_ids=prompt,
        max_tokens=2000,
        sampling=GREEDY,
        ignore_eos=True,
    )
    return engine.submit(request, deliver=deliver)
