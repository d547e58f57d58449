"""The HTTP edge of a real process, mostly through the official client."""

import json
import socket
from typing import Any

import httpx
import openai
import pytest
from engine_process import EngineProcess, wait_until
from openai import OpenAI

from steelyard.engine.request_log import digest_token_ids

pytestmark = pytest.mark.slow

MESSAGES: list[Any] = [{"role": "user", "content": "The quick brown fox 你好"}]
CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


@pytest.fixture
def client(engine_process: EngineProcess) -> Any:
    with OpenAI(base_url=f"{engine_process.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(process: EngineProcess, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps({"model": "tiny"} | body).encode()
    return httpx.post(process.url + path, content=content, headers=headers, timeout=60)


def stream(process: EngineProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = post(process, path, body | {"stream": True})
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_usage_of_a_chat_equals_its_token_ids(
    client: OpenAI, engine_process: EngineProcess
) -> None:
    tokenized = post(engine_process, "/tokenize", {"messages": MESSAGES}).json()

    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=12, extra_body={"return_token_ids": True}
    )

    assert answer.usage is not None
    raw = answer.to_dict()
    assert raw["prompt_token_ids"] == tokenized["tokens"]
    assert answer.usage.prompt_tokens == tokenized["count"]
    assert answer.usage.completion_tokens == len(raw["choices"][0]["token_ids"])  # pyright: ignore[reportIndexIssue]


def test_a_streamed_chat_joins_to_the_whole_one(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)

    chunks = list(client.chat.completions.create(**asked, stream=True))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_asked(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9}

    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )

    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 9
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_running_usage_counts_the_token_ids_so_far(
    engine_process: EngineProcess, path: str
) -> None:
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": "hello"}
    options = {"continuous_usage_stats": True, "include_usage": True}
    body = prompt | {"max_tokens": 15, "return_token_ids": True, "stream_options": options}

    chunks = stream(engine_process, path, body)

    count = 0
    for chunk in chunks[:-1]:
        count += len(chunk["choices"][0]["token_ids"])
        assert chunk["usage"]["completion_tokens"] == count
    assert chunks[-1]["usage"]["completion_tokens"] == count
    assert chunks[0]["usage"]["prompt_tokens"] == len(chunks[0]["prompt_token_ids"])


def test_a_plain_completion_takes_text_or_token_ids(
    client: OpenAI, engine_process: EngineProcess
) -> None:
    token_ids = post(engine_process, "/tokenize", {"prompt": "def add("}).json()["tokens"]

    answers = [
        client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=10)
        for prompt in ("def add(", ["def add("], token_ids)
    ]

    assert answers[0].choices[0].text == answers[1].choices[0].text == answers[2].choices[0].text
    counts = [(a.usage.prompt_tokens, a.usage.completion_tokens) for a in answers if a.usage]
    assert counts == [counts[0]] * 3


def test_a_plain_completion_has_sixteen_tokens_unless_asked(engine_process: EngineProcess) -> None:
    answer = post(engine_process, PLAIN, {"prompt": "hello", "ignore_eos": True}).json()

    assert answer["usage"]["completion_tokens"] == 16


def test_max_tokens_is_clamped_to_the_context(engine_process: EngineProcess) -> None:
    prompt = [5] * 2040

    answer = post(engine_process, PLAIN, {"prompt": prompt, "max_tokens": 999, "ignore_eos": True})

    assert answer.json()["usage"]["total_tokens"] == 2048
    assert answer.json()["choices"][0]["finish_reason"] == "length"


def test_text_parts_are_joined(engine_process: EngineProcess) -> None:
    parts = [{"type": "text", "text": "The quick "}, {"type": "text", "text": "fox"}]

    counts = [
        post(
            engine_process, "/tokenize", {"messages": [{"role": "user", "content": content}]}
        ).json()
        for content in (parts, "The quick fox")
    ]

    assert counts[0] == counts[1]


def test_the_request_log_agrees_with_the_answer(engine_process: EngineProcess) -> None:
    headers = {"X-Request-Id": "my-request-1"}

    answer = post(
        engine_process,
        CHAT,
        {"messages": MESSAGES, "max_tokens": 8, "return_token_ids": True},
        **headers,
    )

    line = engine_process.logged("my-request-1")
    body = answer.json()
    assert body["id"] == "chatcmpl-my-request-1"
    assert answer.headers["X-Request-Id"] == "my-request-1"
    assert line["completion_tokens"] == body["usage"]["completion_tokens"]
    assert line["token_ids_sha256"] == digest_token_ids(body["choices"][0]["token_ids"])


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, b"{", (400, "invalid_json", None)),
        (CHAT, b'{"model":"\xff"}', (400, "invalid_json", None)),
        (
            CHAT,
            b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
            (400, "invalid_json", None),
        ),
        (
            CHAT,
            b'{"model":"tiny","messages":[{"role":"user","content":"\\udc00 x"}]}',
            (400, "invalid_json", None),
        ),
        (
            CHAT,
            b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800 x"}]}',
            (400, "invalid_json", None),
        ),
        (CHAT, b"[" * 100001, (413, "body_too_large", None)),
        (CHAT, b"[" * 90000, (400, "invalid_request", None)),
        (CHAT, b'{"x":' + b"[" * 90000, (400, "invalid_json", None)),
        (CHAT, {}, (400, "invalid_request", "messages")),
        (CHAT, {"messages": []}, (400, "invalid_request", "messages")),
        (CHAT, {"messages": "hi"}, (400, "invalid_request", "messages")),
        (CHAT, {"messages": [{"role": "user"}]}, (400, "invalid_request", "messages[0].content")),
        (CHAT, {"messages": [{"content": "x"}]}, (400, "invalid_request", "messages[0].role")),
        (
            CHAT,
            {"messages": [{"role": "x", "content": "x"}]},
            (400, "invalid_request", "messages[0].role"),
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            (400, "unsupported_content", "messages[0].content[0]"),
        ),
        (CHAT, {"messages": MESSAGES, "max_tokens": -1}, (400, "invalid_request", "max_tokens")),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, (400, "invalid_request", "max_tokens")),
        (CHAT, {"messages": MESSAGES, "max_tokens": "5"}, (400, "invalid_request", "max_tokens")),
        (
            CHAT,
            {"messages": MESSAGES, "max_completion_tokens": 0},
            (400, "invalid_request", "max_completion_tokens"),
        ),
        (CHAT, {"messages": MESSAGES, "temperature": 3}, (400, "invalid_request", "temperature")),
        (CHAT, {"messages": MESSAGES, "top_p": -0.1}, (400, "invalid_request", "top_p")),
        (CHAT, {"messages": MESSAGES, "seed": 2**64}, (400, "invalid_request", "seed")),
        (CHAT, {"messages": MESSAGES, "stop": ["a"] * 17}, (400, "invalid_request", "stop")),
        (CHAT, {"messages": MESSAGES, "stop": ""}, (400, "invalid_request", "stop")),
        (
            CHAT,
            {"messages": MESSAGES, "stream_options": {}},
            (400, "invalid_request", "stream_options"),
        ),
        (CHAT, {"messages": MESSAGES, "n": 17}, (400, "invalid_request", "n")),
        (CHAT, {"messages": MESSAGES, "n": True}, (400, "invalid_request", "n")),
        (CHAT, {"messages": MESSAGES, "logprobs": 3}, (400, "invalid_request", "logprobs")),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, (400, "invalid_request", "top_logprobs")),
        (CHAT, {"messages": MESSAGES, "tools": [{}]}, (400, "unsupported_parameter", "tools")),
        (
            CHAT,
            {"messages": MESSAGES, "logit_bias": {"5": 1}},
            (400, "unsupported_parameter", "logit_bias"),
        ),
        (
            CHAT,
            {"messages": MESSAGES, "presence_penalty": 2.5},
            (400, "invalid_request", "presence_penalty"),
        ),
        (
            CHAT,
            {"messages": MESSAGES, "response_format": {"type": "xml"}},
            (400, "unsupported_parameter", "response_format"),
        ),
        (CHAT, {"messages": MESSAGES, "model": "other"}, (404, "model_not_found", "model")),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x " * 9000}]},
            (400, "context_length_exceeded", "messages"),
        ),
        (PLAIN, {"prompt": ""}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": []}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": ["a", "b"]}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": [1, 99999]}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": [-1]}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": [5] * 2048}, (400, "context_length_exceeded", "prompt")),
        (PLAIN, {"prompt": "x", "echo": True}, (400, "unsupported_parameter", "echo")),
        (PLAIN, {"prompt": "x", "suffix": "y"}, (400, "fill_in_unsupported", "suffix")),
        (PLAIN, {"prompt": [1, 2], "suffix": "y"}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": "", "suffix": ""}, (400, "invalid_request", "prompt")),
        (PLAIN, {"prompt": "x", "best_of": 2}, (400, "unsupported_parameter", "best_of")),
        ("/tokenize", {}, (400, "invalid_request", "messages")),
        ("/nowhere", {}, (404, "not_found", None)),
        ("/health", {}, (405, "method_not_allowed", None)),
    ],
)
def test_a_request_we_cannot_serve_is_refused_in_the_openai_shape(
    engine_process: EngineProcess, path: str, body: Any, expected: tuple[int, str, str | None]
) -> None:
    response = post(engine_process, path, body)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == expected
    assert error["message"]


def test_neutral_values_and_unknown_fields_are_accepted(engine_process: EngineProcess) -> None:
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0.0, "frequency_penalty": 0}
    neutral |= {"response_format": {"type": "text"}, "tools": [], "logit_bias": {}, "user": "u"}
    neutral |= {"temperature": 1, "top_p": 1, "stop": None, "seed": 3, "something_new": [1]}

    response = post(
        engine_process, CHAT, {"messages": MESSAGES, "max_completion_tokens": 2} | neutral
    )

    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] <= 2


def test_a_prompt_over_its_bound_says_both_numbers(engine_process: EngineProcess) -> None:
    tokens = post(engine_process, "/tokenize", {"prompt": "hello world"}).json()["count"]
    bounded = {"prompt": "hello world", "max_prompt_tokens": tokens - 1}

    refused = post(engine_process, PLAIN, bounded)
    accepted = post(engine_process, PLAIN, bounded | {"max_prompt_tokens": tokens})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "prompt_over_bound")
    assert (error["prompt_tokens"], error["max_prompt_tokens"]) == (tokens, tokens - 1)
    assert accepted.status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_frees_the_slot(engine_process: EngineProcess, streamed: bool) -> None:
    engine_process.wait_until_idle()
    before = engine_process.stats()["cancelled"]
    body = endless() | {"stream": streamed}

    connection = post_and_forget(engine_process, body)
    wait_until(lambda: engine_process.stats()["running"] == 1)
    connection.close()

    engine_process.wait_until_idle()
    assert engine_process.stats()["cancelled"] == before + 1


def test_a_full_engine_says_when_to_come_back(engine_process: EngineProcess) -> None:
    engine_process.wait_until_idle()

    connections = [post_and_forget(engine_process, endless()) for _ in range(4)]
    wait_until(lambda: engine_process.stats()["waiting"] == 2)
    refused = post(engine_process, PLAIN, {"prompt": "x"})
    for connection in connections:
        connection.close()

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    engine_process.wait_until_idle()


def test_the_client_library_sees_our_refusals_as_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="other", messages=MESSAGES)

    assert refusal.value.code == "model_not_found"


def test_the_model_list_tells_the_tokenizer_facts(client: OpenAI) -> None:
    [model] = client.models.list().data

    facts = model.to_dict()["steelyard"]
    assert model.id == "tiny"
    assert isinstance(facts, dict)
    assert facts["byte_level"] is True
    assert len(str(facts["tokenizer_sha256"])) == 64
    assert facts["eos_token_ids"] == [2]
    assert (facts["dtype"], facts["device"]) == ("float32", "cpu")


def endless() -> dict[str, Any]:
    prompt = [9] * 1000
    return {"model": "tiny", "prompt": prompt, "max_tokens": 1000, "ignore_eos": True}


def post_and_forget(process: EngineProcess, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    host, port = process.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {PLAIN} HTTP/1.1\r\nHost: engine\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_request_can_be_asked_for_by_its_id(engine_process: EngineProcess) -> None:
    usage = ask(engine_process, headers={"X-Request-Id": "hold/7"}).json()["usage"]

    found = httpx.get(f"{engine_process.url}/requests/hold/7").json()
    unknown = httpx.get(f"{engine_process.url}/requests/nobody")

    assert (found["state"], found["answers"][0]["end"]) == ("ended", "length")
    assert found["completion_tokens"] == usage["completion_tokens"] == 5
    answer = found["answers"][0]
    assert {name: answer[name] for name in usage["engine"]} == usage["engine"]
    assert answer["engine_us"] > 0
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_unknown")


def test_many_requests_can_be_asked_for_at_once(engine_process: EngineProcess) -> None:
    for name in ("hold-a", "hold-b"):
        ask(engine_process, headers={"X-Request-Id": name})

    asked = {"request_ids": ["hold-a", "nobody", "hold-b"]}
    told = httpx.post(f"{engine_process.url}/requests", json=asked).json()["requests"]
    refused = httpx.post(f"{engine_process.url}/requests", json={"request_ids": "hold-a"})

    assert [found["request_id"] for found in told] == ["hold-a", "hold-b"]
    assert told[0] == httpx.get(f"{engine_process.url}/requests/hold-a").json()
    assert refused.status_code == 400


def test_usage_tells_what_was_found_in_the_cache(engine_process: EngineProcess) -> None:
    prompt = list(range(100, 150))

    first, again = (ask(engine_process, prompt=prompt).json() for _ in range(2))
    salted = ask(engine_process, prompt=prompt, cache_salt="mine").json()

    found = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (first, again, salted)]
    assert found == [0, 48, 0]
    assert first["choices"] == again["choices"] == salted["choices"]


def ask(process: EngineProcess, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"model": "tiny", "prompt": "def add(", "max_tokens": 5, "temperature": 0}
    body |= {"ignore_eos": True, **more}
    return httpx.post(f"{process.url}/v1/completions", json=body, headers=headers or {}, timeout=60)


def test_metrics_are_told_by_vllms_and_opentelemetrys_names(engine_process: EngineProcess) -> None:
    before = read_metrics(engine_process)

    ask(engine_process)
    after = read_metrics(engine_process)

    label = 'model_name="tiny"'
    assert after[f"vllm:num_requests_running{{{label}}}"] == 0
    assert after[f"vllm:kv_cache_usage_perc{{{label}}}"] == 0
    for name, more in {
        f"vllm:generation_tokens_total{{{label}}}": 5,
        f'vllm:request_success_total{{finished_reason="length",{label}}}': 1,
        f"vllm:time_to_first_token_seconds_count{{{label}}}": 1,
        f"vllm:inter_token_latency_seconds_count{{{label}}}": 1,
        f"vllm:e2e_request_latency_seconds_count{{{label}}}": 1,
        'gen_ai_server_request_duration_seconds_count{gen_ai_request_model="tiny"}': 1,
    }.items():
        assert after[name] - before.get(name, 0) == more, name


def read_metrics(process: EngineProcess) -> dict[str, float]:
    lines = httpx.get(f"{process.url}/metrics").text.splitlines()
    parts = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in parts}
