"""Editors at the gateway, with requests as they send them, against running processes."""

import json
import threading
from collections.abc import Generator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
answers:
  - when: {contains: stuck}
    words: [return, ' a']
    hangs_after_words: 2
  - words: [' a', ' +', ' b']
"""
COST = Decimal(7 * 2 + 3 * 10) / 10**6
PREFIX, SUFFIX = "def add(a, b):\n    return", "\n\n\ndef main():\n"
# As Continue asks a server of OpenAI's kind: the prompt is written out by its own template.
CONTINUE: Any = {
    "model": "scripted",
    "prompt": f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>",
    "max_tokens": 2048,
    "temperature": 0.01,
    "stop": [
        *("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
        *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>"),
        *("/src/", "#- coding: utf-8", "```"),
    ],
    "stream": True,
}
# As Tabby's editors ask: no model, and the text in segments.
TABBY: Any = {
    "language": "python",
    "segments": {
        "prefix": PREFIX,
        "suffix": SUFFIX,
        "filepath": "sums.py",
        "git_url": "https://example.org/sums.git",
        "clipboard": "",
    },
    "user": "dev",
    "temperature": 0.1,
}
# As Copilot's editors ask, at a path that names the model.
COPILOT: Any = {
    "prompt": PREFIX,
    "suffix": SUFFIX,
    "max_tokens": 500,
    "temperature": 0,
    "top_p": 1,
    "n": 1,
    "stop": ["\n\n\n", "\n```"],
    "nwo": "example/sums",
    "stream": True,
    "extra": {
        "language": "python",
        "next_indent": 0,
        "trim_by_indentation": True,
        "prompt_tokens": 9,
        "suffix_tokens": 8,
    },
}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    with running_scripted_product(tmp_path_factory.mktemp("editors"), SCRIPT) as running:
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    return product.tenant("acme", dollars="10")


@pytest.fixture(scope="module")
def editors(product: ScriptedProduct) -> str:
    return product.tenant("editors")


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_continue_asks_with_a_prompt_of_its_own_making(
    product: ScriptedProduct, secret: str
) -> None:
    answer = product.post("/v1/completions", secret, CONTINUE)

    assert "".join(chunk["choices"][0]["text"] for chunk in chunks(answer)) == " a + b"
    sent = product.asked_upstream()[-1]["body"]
    assert (sent["prompt"], sent["stop"]) == (CONTINUE["prompt"], CONTINUE["stop"])
    event = product.settled(answer.headers["x-steelyard-event-id"], secret)
    assert Decimal(event["cost"]) == COST


def test_tabbys_segments_are_a_prompt_and_a_suffix(product: ScriptedProduct, secret: str) -> None:
    answer = product.post("/v1/completions", secret, TABBY).json()

    assert answer["choices"][0] | {"finish_reason": None} == {
        "index": 0,
        "text": " a + b",
        "finish_reason": None,
    }
    assert Decimal(answer["usage"]["cost"]) == COST
    sent = product.asked_upstream()[-1]["body"]
    assert (sent["prompt"], sent["suffix"]) == (PREFIX, SUFFIX)
    assert not {"segments", "language"} & sent.keys()
    both = product.post("/v1/completions", secret, TABBY | {"prompt": "x"})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "segments")


def test_copilots_path_names_the_model(product: ScriptedProduct, secret: str) -> None:
    answer = product.post("/v1/engines/scripted/completions", secret, COPILOT)
    other = product.post("/v1/engines/copilot-codex/completions", secret, COPILOT)

    assert "".join(chunk["choices"][0]["text"] for chunk in chunks(answer)) == " a + b"
    assert product.asked_upstream()[-1]["body"]["suffix"] == SUFFIX
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_newer_request_of_the_session_ends_the_older_one(
    is_streamed: bool, product: ScriptedProduct, secret: str
) -> None:
    headers = {"Authorization": f"Bearer {secret}", "X-Steelyard-Session": f"pane-{is_streamed}"}
    stuck = {"model": "scripted", "prompt": f"stuck {is_streamed}", "stream": is_streamed}
    url = f"{product.url}/v1/completions"
    older: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: older.append(httpx.post(url, json=stuck, headers=headers, timeout=60))
    )
    asking.start()
    wait_until(
        lambda: any(r["body"].get("prompt") == stuck["prompt"] for r in product.asked_upstream())
    )

    newer = httpx.post(
        url, json={"model": "scripted", "prompt": "quick"}, headers=headers, timeout=60
    )
    asking.join(timeout=60)

    assert newer.json()["choices"][0]["text"] == " a + b"
    if is_streamed and older[0].status_code == 200:
        last = older[0].text.strip().splitlines()[-1].removeprefix("data: ")
        error = json.loads(last)["error"]
    else:
        assert older[0].status_code == 409
        error = older[0].json()["error"]
    assert error["code"] == "request_superseded"


def test_feedback_makes_the_cost_of_an_accepted_suggestion(
    product: ScriptedProduct, editors: str
) -> None:
    secret = editors
    answers = [product.post("/v1/completions", secret, TABBY).json() for _ in range(4)]
    first, second, third, _ = [answer["usage"]["event_id"] for answer in answers]

    told = [
        product.post(f"/v1/completions/{first}/feedback", secret, {"shown": True}),
        product.post(f"/v1/completions/cmpl-{first}/feedback", secret, {"accepted": True}),
        product.post(f"/v1/completions/{first}/feedback", secret, {"accepted": True}),
        product.post("/v1/events", secret, {"type": "view", "completion_id": second}),
        product.post("/v1/events", secret, {"type": "select", "completion_id": f"cmpl-{third}"}),
    ]
    product.settled(answers[-1]["usage"]["event_id"], secret)

    assert [answer.status_code for answer in told] == [200] * 5
    assert told[2].json() == {
        "object": "completion.feedback",
        "event_id": first,
        "shown": True,
        "accepted": True,
    }
    (row,) = product.command("report", "suggestions", "editors", "--json")
    assert row == {
        "department": "it",
        "model": "scripted",
        "suggestions": 4,
        "shown": 3,
        "accepted": 2,
        "cost": str(4 * COST),
        "cost_per_accepted": str(2 * COST),
        "currency": "USD",
    }


def test_feedback_is_taken_for_what_is_ones_own(
    product: ScriptedProduct, secret: str, editors: str
) -> None:
    event_id = product.post("/v1/completions", secret, TABBY).json()["usage"]["event_id"]
    path = f"/v1/completions/{event_id}/feedback"

    answers = [
        product.post(path, editors, {"shown": True}),
        product.post("/v1/completions/nothing/feedback", secret, {"shown": True}),
        product.post("/v1/events", secret, {"type": "select", "completion_id": "nothing"}),
        product.post(path, secret, {}),
        product.post(path, secret, {"shown": "yes"}),
    ]

    assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [
        (404, "event_not_found"),
        (404, "event_not_found"),
        (404, "event_not_found"),
        (400, "invalid_request"),
        (400, "invalid_request"),
    ]
