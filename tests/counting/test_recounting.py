"""An attempt is counted again whole, or says in a word why not; in a process of its own."""

import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from steelyard.clock import FakeClock
from steelyard.counting.counting_process import CountingProcess, CountingStopped
from steelyard.counting.model_counter import ModelCounter
from steelyard.counting.pin import Proof, Registered
from steelyard.counting.recounting import recount
from steelyard.counting.registration import Evidence, prepare_registration
from steelyard.counting.registry import OpenedTokenizer, TokenizerRegistry
from steelyard.metering.answer_text import AnswerUnreadable, ChoiceText, read_answer
from steelyard.metering.recount import RecountJob
from tests.counting.vocabularies import found, pin_of, reference

NOW = datetime(2026, 11, 25, tzinfo=UTC)
MESSAGES = [{"role": "user", "content": "请问这张发票什么时候到期？"}]


def _job(**given: Any) -> RecountJob:
    prompt = given.pop("prompt", {"messages": MESSAGES})
    answer = [{"index": 0, "message": {"content": "月底。"}, "finish_reason": "stop"}]
    fields: dict[str, Any] = {
        "id": "1",
        "upstream": "hosted",
        "model": "gpt-4o",
        "prompt": json.dumps(prompt).encode(),
        "answer": json.dumps(answer).encode(),
        "is_streamed": False,
        "reported_input": 20,
        "reported_output": 3,
        **given,
    }
    return RecountJob(**fields)


@pytest.fixture
def counter(vocabulary_folder: Path) -> ModelCounter:
    registered = Registered(
        model="gpt-4o",
        pin=pin_of("o200k", vocabulary_folder),
        proof=Proof(kind="none"),
        registered_at="",
        known_as="o200k",
        served_sha256="f" * 64,
    )
    opened = OpenedTokenizer(registered, reference("o200k", vocabulary_folder), None)
    return ModelCounter(opened, clock=FakeClock(NOW))


def test_both_sides_are_counted(counter: ModelCounter) -> None:
    record = recount(_job(), counter, at=NOW)

    assert record.outcome == "recounted"
    assert record.recounted_input == counter.count_messages(MESSAGES).tokens
    assert record.recounted_output == counter.count_text("月底。")
    assert (record.reported_input, record.reported_output) == (20, 3)
    assert record.source == "tokenizer"


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [({"prompt": "a b"}, 2), ({"prompt": ["a b"]}, 2), ({"prompt": [5, 6, 7]}, 3)],
)
def test_a_bare_prompt_is_counted_however_it_is_written(
    counter: ModelCounter, prompt: dict[str, Any], tokens: int
) -> None:
    assert recount(_job(prompt=prompt), counter, at=NOW).recounted_input == tokens


@pytest.mark.parametrize(
    "extra", [{"stop": ["."]}, {"response_format": {"type": "json_object"}}, {"functions": [{}]}]
)
def test_a_side_without_a_second_count_has_no_first_one(
    counter: ModelCounter, extra: dict[str, Any]
) -> None:
    record = recount(_job(prompt={"messages": MESSAGES, **extra}), counter, at=NOW)

    assert record.outcome == "recounted"
    sides = (
        (record.reported_input, record.recounted_input),
        (
            record.reported_output,
            record.recounted_output,
        ),
    )
    assert (None, None) in sides
    assert all((one is None) is (other is None) for one, other in sides)


def test_tools_make_it_an_estimate(counter: ModelCounter) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "g"}}

    record = recount(_job(prompt={"messages": MESSAGES, "tools": [tool]}), counter, at=NOW)

    assert record.source == "estimate"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"served_sha256": "0" * 64}, "other_tokenizer_served"),
        (
            {"prompt": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}},
            "content_not_countable",
        ),
        ({"answer": b"not json"}, "attempt_unreadable"),
        ({"prompt": {"functions": [{}], "stop": "x"}}, "no_rule"),
    ],
)
def test_what_cannot_be_counted_says_why(
    counter: ModelCounter, given: dict[str, Any], reason: str
) -> None:
    record = recount(_job(**given), counter, at=NOW)

    assert (record.outcome, record.reason) == ("uncountable", reason)
    assert record.recounted_input is None


def test_a_streamed_answer_is_read_as_it_was_handed_over() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "北\n"}}]},
        {"choices": [{"index": 0, "delta": {"content": "京"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {"tool_calls": [{}]}, "finish_reason": "tool_calls"}]},
    ]
    answer = b"\n".join(json.dumps(chunk).encode() for chunk in chunks)

    choices = read_answer(answer, is_streamed=True)

    assert choices == [ChoiceText("北\n京", "stop", True), ChoiceText("b", "tool_calls", False)]
    with pytest.raises(AnswerUnreadable):
        read_answer(b"{\n", is_streamed=True)


@pytest.fixture
def registered_folder(tmp_path: Path, vocabulary_folder: Path) -> Path:
    registry = TokenizerRegistry(tmp_path / "tokenizers")
    files = found("o200k", vocabulary_folder)
    registry.add(prepare_registration("gpt-4o", files, Evidence(), at=NOW), files)
    return registry.folder


@pytest.mark.slow
def test_a_process_of_its_own_counts_and_is_started_again_when_it_dies(
    registered_folder: Path, counter: ModelCounter
) -> None:
    process = CountingProcess(registered_folder, timeout_s=120)
    first = process.recount(_job())
    child = process._process
    assert child is not None
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    with pytest.raises(CountingStopped):
        process.recount(_job())
    again = process.recount(_job())

    process.close()
    assert process.models() == {"gpt-4o"}
    assert first.recounted_input == counter.count_messages(MESSAGES).tokens
    assert again.recounted_input == first.recounted_input
    assert child.pid != os.getpid()


@pytest.mark.slow
def test_a_model_that_nobody_registered_is_uncountable_in_the_process_too(
    registered_folder: Path,
) -> None:
    process = CountingProcess(registered_folder, timeout_s=120)

    record = process.recount(_job(model="other"))

    process.close()
    assert (record.outcome, record.reason) == ("uncountable", "tokenizer_not_registered")


@pytest.mark.slow
def test_a_count_that_takes_too_long_is_given_up(registered_folder: Path) -> None:
    process = CountingProcess(registered_folder, timeout_s=0)

    with pytest.raises(CountingStopped, match="longer than 0"):
        process.recount(_job())

    process.close()
