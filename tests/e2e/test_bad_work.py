"""Bad input to every kind of work: a clear error with a stable code before anything is held, and
nothing charged; against running processes."""

import base64
import io
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product
from tests.pictures import draw, empty_png, part
from tests.recordings import record
from tests.unit.test_document_reading import docx, locked_pdf

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
paths: [/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/classifications,
        /v1/moderations, /v1/rerank, /v1/responses, /v1/messages, /v1/images/generations,
        /v1/audio/transcriptions, /v1/audio/speech]
answers:
  - words: [done]
"""
# Whatever is not refused for what it is has a price, and would be charged.
BOOK = """
schema: steelyard.price-book/v1
name: every-kind-of-work
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: "*"
    prices:
      input.text: { amount: 2, per: 1M }
      output.text: { amount: 10, per: 1M }
      input.audio.seconds: { amount: 100, per: 1M }
      output.audio.characters: { amount: 15, per: 1M }
      output.image.equivalent_tokens: { amount: 5, per: 1M }
      call: { amount: 1, per: 1k }
    equivalent_tokens:
      output.image.equivalent_tokens: ceil(output.image.pixels * output.image.steps / 1000)
"""
PIPELINES = {
    "recorded": "input: { recording: audio }\nstages:\n  one:\n"
    "    endpoint: /v1/audio/transcriptions\n"
    '    body: { model: scripted, file: "${input.recording}" }\n',
    "read": "input: { paper: document }\nstages:\n  one:\n    endpoint: /v1/chat/completions\n"
    "    body: { model: scripted, max_tokens: 9,"
    ' messages: [{ role: user, content: "${input.paper.text}" }] }\n',
    "cyclic": "input: [text]\nstages:\n"
    "  one: { endpoint: /v1/embeddings, after: [two], body: { model: scripted, input: a } }\n"
    "  two: { endpoint: /v1/embeddings, after: [one], body: { model: scripted, input: a } }\n",
}
SOUND = record("wav", seconds=1)
HUGE = empty_png(100_000, 100_000)


def huge_jpeg() -> bytes:
    """A JPEG whose header says 65,535 pixels each way."""
    whole = draw("disc", kind="JPEG")
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]


def within_json(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


@dataclass(frozen=True)
class Bad:
    """A request, and what it is told."""

    name: str
    path: str
    status: int
    code: str
    body: dict[str, Any] | bytes | None = None
    file: bytes | None = None
    fields: dict[str, str] = field(default_factory=dict[str, str])

    def ask(self, product: ScriptedProduct, secret: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        url = product.url + self.path
        if self.file is not None:
            files = {"file": ("given", self.file)}
            return httpx.post(url, files=files, data=self.fields, headers=headers, timeout=60)
        if isinstance(self.body, bytes):
            return httpx.post(url, content=self.body, headers=headers, timeout=60)
        return httpx.post(url, json=self.body, headers=headers, timeout=60)


def sound(name: str, content: bytes, status: int, code: str, **fields: str) -> Bad:
    given = {"model": "scripted", **fields}
    return Bad(f"sound: {name}", "/v1/audio/transcriptions", status, code, None, content, given)


def document(name: str, content: bytes, code: str, status: int = 400, **fields: str) -> Bad:
    given = {"model": "scripted", "task": "summary", **fields}
    return Bad(f"document: {name}", "/v1/documents", status, code, None, content, given)


def work(path: str, name: str, status: int, code: str, **body: Any) -> Bad:
    return Bad(f"{path}: {name}", f"/v1/{path}", status, code, {"model": "scripted", **body})


def no_json(path: str, name: str, body: bytes | None, file: bytes | None = None) -> Bad:
    # Anthropic's errors have a type, and no code.
    code = "invalid_request_error" if path == "messages" else "invalid_json"
    return Bad(f"{path}: {name}", f"/v1/{path}", 400, code, body, file)


def run(pipeline: str, name: str, status: int, code: str, **given: Any) -> Bad:
    path = f"/v1/pipelines/{pipeline}/runs"
    return Bad(f"pipeline: {name}", path, status, code, {"input": given})


JSON_PATHS = (
    "chat/completions",
    "completions",
    "embeddings",
    "classifications",
    "moderations",
    "rerank",
    "responses",
    "messages",
    "images/generations",
    "audio/speech",
)
BAD = [
    *(no_json(path, "no body", b"") for path in JSON_PATHS),
    *(no_json(path, "no JSON", b"{no") for path in JSON_PATHS),
    *(no_json(path, "no number", b'{"n": NaN}') for path in JSON_PATHS),
    *(no_json(path, "a form", None, SOUND) for path in JSON_PATHS),
    sound("nothing in it", b"", 400, "file_empty"),
    sound("cut off", SOUND[:-9], 400, "audio_truncated"),
    sound("cut off in its header", SOUND[:20], 400, "audio_truncated"),
    sound("a picture", draw("disc"), 415, "audio_unsupported"),
    sound("no such format", SOUND, 400, "invalid_request", response_format="html"),
    Bad("sound: JSON", "/v1/audio/transcriptions", 415, "unsupported_media_type", {}),
    work("images/generations", "too large", 413, "image_too_large", prompt="a", size="100000x9"),
    work("images/generations", "no size", 400, "invalid_request", prompt="a", size="0x9"),
    work("images/generations", "too many", 400, "invalid_request", prompt="a", n=11),
    work("images/generations", "no steps", 400, "invalid_request", prompt="a", steps=0),
    work("images/generations", "no prompt", 400, "empty_prompt", prompt=" "),
    work("classifications", "100,000 pixels", 413, "image_too_large", input=[part(HUGE)]),
    work(
        "classifications",
        "65,535 pixels",
        413,
        "image_too_large",
        input=[part(huge_jpeg(), kind="jpeg")],
    ),
    work("classifications", "sound", 415, "picture_unsupported", input=[part(SOUND)]),
    work("classifications", "empty picture", 415, "picture_unsupported", input=[part(b"")]),
    work(
        "classifications",
        "a picture elsewhere",
        400,
        "invalid_request",
        input=[{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
    ),
    work(
        "classifications",
        "no base64",
        400,
        "invalid_request",
        input=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,é"}}],
    ),
    work("classifications", "both", 400, "invalid_request", input=["a", part(draw("disc"))]),
    work("classifications", "nothing", 400, "empty_prompt", input=[]),
    work("classifications", "no text", 400, "empty_prompt", input=["a", ""]),
    work("moderations", "no text", 400, "empty_prompt", input=""),
    work("moderations", "numbers", 400, "invalid_request", input=[1, 2]),
    work("embeddings", "nothing", 400, "empty_prompt", input=[]),
    work("embeddings", "too many", 413, "prompt_too_long", input=["a"] * 2_048),
    work("rerank", "no query", 400, "empty_prompt", query="", documents=["a"]),
    work("rerank", "no documents", 400, "empty_prompt", query="a", documents=[]),
    work("audio/speech", "no text", 400, "empty_prompt", input="  "),
    work("audio/speech", "too long", 400, "invalid_request", input="a" * 4_097),
    work("audio/speech", "no format", 400, "invalid_request", input="a", response_format="midi"),
    document("nothing in it", b"", "file_empty"),
    document("blank", b" \n", "document_empty"),
    document("with a password", locked_pdf(), "document_encrypted"),
    document("a bomb", docx(b"<a>" + b" " * 100_000_000), "document_too_large", 413),
    document("entities", docx(b"<!DOCTYPE a><a/>"), "document_unreadable"),
    document("a PDF cut off", b"%PDF-1.7\n1 0 obj", "document_unreadable"),
    document("an archive cut off", docx(b"<a/>")[:-30], "document_unreadable"),
    document("sound", SOUND, "document_unreadable"),
    document("no such task", b"text", "invalid_request", task="poem"),
    document("no answer", b"text", "invalid_request", max_tokens="0"),
    document("no such model", b"text", "model_not_found", 404, model="nobody"),
    Bad("document: JSON", "/v1/documents", 415, "unsupported_media_type", {}),
    run("recorded", "sound cut off", 400, "audio_truncated", recording=within_json(SOUND[:-9])),
    run("recorded", "a picture", 415, "audio_unsupported", recording=within_json(draw("disc"))),
    run("recorded", "nothing in it", 400, "file_empty", recording=within_json(b"")),
    run("recorded", "no base64", 400, "file_missing", recording={"base64": "é"}),
    run("read", "a password", 400, "document_encrypted", paper=within_json(locked_pdf())),
    run("read", "blank", 400, "document_empty", paper=" "),
    run("read", "too many", 400, "invalid_request", paper="a", more="b"),
    run("cyclic", "a cycle", 400, "pipeline_cyclic", text="a"),
    run("nobody", "no such one", 404, "pipeline_not_found"),
    Bad("file: nothing in it", "/v1/files", 400, "file_empty", None, b"", {"purpose": "batch"}),
    Bad("file: JSON", "/v1/files", 415, "unsupported_media_type", {}),
    work(
        "batches",
        "no such file",
        404,
        "file_not_found",
        input_file_id="file-x",
        endpoint="/v1/chat/completions",
        completion_window="24h",
    ),
]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder: Path = tmp_path_factory.mktemp("bad")
    pipelines = folder / "pipelines"
    pipelines.mkdir()
    for name, text in PIPELINES.items():
        head = f"schema: steelyard.pipeline/v1\nname: {name}\n"
        (pipelines / f"{name}.yaml").write_text(head + text + 'output: "${one}"\n')
    settings = {
        "STEELYARD_PIPELINES_DIR": str(pipelines),
        "STEELYARD_REQUESTS_PER_MINUTE": "1000000",
    }
    with running_scripted_product(folder, SCRIPT, **settings) as running:
        (folder / "book.yaml").write_text(BOOK)
        running.command("price", "publish", str(folder / "book.yaml"))
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    return product.tenant("bad")


def expect_no_money_moved(product: ScriptedProduct, secret: str) -> None:
    balance = product.get("/v1/balance", secret).json()
    assert (Decimal(balance["held"]), Decimal(balance["available"])) == (0, 1)


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_bad_input_has_a_clear_error_and_costs_nothing(
    bad: Bad, product: ScriptedProduct, secret: str
) -> None:
    answer = bad.ask(product, secret)

    error = answer.json()["error"]
    code = error.get("code") or error["type"]
    assert (answer.status_code, code) == (bad.status, bad.code), error
    assert error["message"]
    expect_no_money_moved(product, secret)
    # Its tokens may have been counted.
    assert {asked["path"] for asked in product.asked_upstream()} <= {"/tokenize"}


def test_lines_that_are_no_requests_fail_a_batch_which_costs_nothing(
    product: ScriptedProduct, secret: str
) -> None:
    client = product.openai(secret)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    content = b"\n".join([json.dumps(line).encode(), b"no JSON", json.dumps(line).encode()])
    file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")

    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status == "validating":
        batch = client.batches.retrieve(batch.id)

    assert batch.status == "failed"
    assert batch.errors is not None
    told = [(error.code, error.line) for error in batch.errors.data or ()]
    assert told == [("invalid_json_line", 2), ("duplicate_custom_id", 3)]
    expect_no_money_moved(product, secret)


@pytest.mark.parametrize(
    "formula", ["output.image.pixels / 0", "ceil(1 / (2 - 2))", "output.image.pixels / call"]
)
def test_a_formula_that_can_divide_by_zero_is_not_published(
    formula: str, product: ScriptedProduct
) -> None:
    text = BOOK.replace("ceil(output.image.pixels * output.image.steps / 1000)", formula)
    path = product.folder / "zero.yaml"
    path.write_text(text.replace("every-kind-of-work", "zero"))

    refused = product.command("price", "publish", str(path), status=1)

    assert refused["error"]["code"] == "price_book_malformed"
    assert "divi" in refused["error"]["message"]


def test_nothing_of_it_is_in_the_books(product: ScriptedProduct, secret: str) -> None:
    assert product.get("/v1/balance", secret).json()["available"] == "1"
    assert product.command("usage", "--tenant", "bad/it") == []
    assert product.command("verify")["holds"]
