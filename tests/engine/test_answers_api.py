"""Penalties, log probabilities, several answers, schemas and tools, through the real edge."""

import json
import math
from typing import Any

import httpx
import pytest
import torch
from engine_process import EngineProcess
from openai import OpenAI

from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.sampler import Context, Sampler, Sampling

NOTHING = Context([], [])
CPU = torch.device("cpu")


@pytest.fixture
def client(engine_process: EngineProcess) -> OpenAI:
    return OpenAI(base_url=f"{engine_process.url}/v1", api_key="none", max_retries=0)


def draw(logits: list[float], context: Context = NOTHING, **sampling: Any) -> int:
    choices: dict[str, Any] = {"temperature": 0.0} | sampling
    sampler = Sampler(Sampling(**choices), device=CPU)
    return sampler.draw(torch.tensor(logits), context).token_id


def test_a_repetition_penalty_counts_prompt_and_answer_once() -> None:
    logits = [4.0, 3.0, -1.0]

    assert draw(logits) == 0
    assert draw(logits, Context([0], []), repetition_penalty=1.5) == 1
    assert draw(logits, Context([], [0, 0]), repetition_penalty=1.3) == 0
    assert draw([-1.0, -1.5], Context([0], []), repetition_penalty=2.0) == 1


def test_presence_counts_once_and_frequency_each_time_and_neither_the_prompt() -> None:
    logits = [4.0, 3.0, 0.0]

    assert draw(logits, Context([], [0]), presence_penalty=0.9) == 0
    assert draw(logits, Context([], [0]), presence_penalty=1.1) == 1
    assert draw(logits, Context([], [0, 0, 0]), presence_penalty=0.9) == 0
    assert draw(logits, Context([], [0, 0]), frequency_penalty=0.6) == 1
    assert draw(logits, Context([0, 0], []), frequency_penalty=2.0) == 0


def test_min_p_leaves_only_what_comes_near_the_best() -> None:
    probabilities = [0.5, 0.3, 0.15, 0.05]
    logits = [math.log(p) for p in probabilities]

    drawn = {draw(logits, temperature=1.0, min_p=0.5, seed=i) for i in range(60)}

    assert drawn == {0, 1}


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    sampler = Sampler(Sampling(temperature=0.0, logprobs=2, repetition_penalty=9.0), device=CPU)

    found = sampler.draw(logits, Context([1], [])).logprob

    expected = logits.log_softmax(-1)
    assert found is not None
    assert found.token_id == 2
    assert found.logprob == pytest.approx(float(expected[2]))
    assert [token_id for token_id, _ in found.top] == [1, 2]


@pytest.mark.slow
def test_chat_tells_log_probabilities_whole_and_streamed_alike(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }

    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))

    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert whole.usage is not None
    assert len(told.content) == whole.usage.completion_tokens
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in told.content)
    assert all(len(entry.top_logprobs) == 3 for entry in told.content)
    joined = b"".join(bytes(entry.bytes or []) for entry in told.content)
    assert joined.decode(errors="replace").startswith(whole.choices[0].message.content or "")
    streamed = [
        entry.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or []
    ]
    assert streamed == [entry.token for entry in told.content]


@pytest.mark.slow
def test_completions_tell_log_probabilities_in_lists(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="def add(", max_tokens=6, temperature=0, logprobs=2
    )

    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert answer.usage is not None
    assert len(told.token_logprobs) == answer.usage.completion_tokens
    best = [max(found.values()) for found in told.top_logprobs]
    assert told.token_logprobs == best


@pytest.mark.slow
def test_several_answers_share_a_prompt_and_count_it_once(
    client: OpenAI, engine_process: EngineProcess
) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 1,
        "seed": 5,
        "n": 3,
        "extra_body": {"ignore_eos": True},
    }

    single: dict[str, Any] = asked | {"n": 1}
    alone = client.chat.completions.create(**single)
    whole = client.chat.completions.create(**asked, extra_headers={"X-Request-Id": "three"})
    streamed = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )

    assert alone.usage is not None
    assert whole.usage is not None
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert texts[0] == alone.choices[0].message.content
    assert len(set(texts)) == 3
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens
    assert whole.usage.completion_tokens == 27
    assert streamed[-1].usage is not None
    assert streamed[-1].usage.completion_tokens == 27
    assert [join(streamed, index) for index in range(3)] == texts
    logged = httpx.get(f"{engine_process.url}/requests/three").json()
    assert (logged["completion_tokens"], len(logged["answers"])) == (27, 3)
    assert logged["prompt_tokens"] == whole.usage.prompt_tokens


def join(chunks: list[Any], index: int) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


SCHEMA: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "北京"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_with_a_schema_follows_it_whatever_the_model_would_say(
    client: OpenAI, temperature: int
) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}

    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "where?"}],
        temperature=temperature,
        seed=1,
        max_tokens=200,
        response_format=wanted,
    )

    said = json.loads(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert said["city"] in ("Paris", "北京")
    assert 0 <= said["people"] <= 99
    assert set(said) == {"city", "people"}


def test_a_schema_that_cannot_be_followed_is_refused_by_name(
    engine_process: EngineProcess,
) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
    }

    answer = httpx.post(f"{engine_process.url}/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"


def test_tools_that_the_template_ignores_are_refused(engine_process: EngineProcess) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}

    answer = httpx.post(f"{engine_process.url}/v1/chat/completions", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


def test_tools_are_counted_as_the_template_writes_them(tiny: LoadedModel) -> None:
    from steelyard.engine.loaded_model import TokenizerCalls

    tokenizer = tiny._tokenizer._tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + template
    )
    try:
        calls = TokenizerCalls(tokenizer)
        message = [{"role": "user", "content": "x"}]
        with_tool = calls.encode_messages(message, tools=[{"function": {"name": "dog"}}])
        without = calls.encode_messages(message)
    finally:
        tokenizer.chat_template = template

    assert with_tool == calls.encode("dog", add_special_tokens=False) + without


def test_the_bytes_of_all_tokens_join_to_the_text(tiny: LoadedModel) -> None:
    text = "Émile 你好 🍮 x"

    joined = b"".join(tiny.read_token(token_id) for token_id in tiny.encode_text(text))

    assert joined.decode() == text
