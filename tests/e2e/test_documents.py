"""Documents against running processes: cut, answered part by part, put together, and finished after
a kill with every part charged once."""

import json
import os
import re
import signal
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import (
    PRICE_BOOK,
    ScriptedProduct,
    running_scripted_product,
    stop_process,
)
from tests.unit.test_document_reading import WORD, docx, locked_pdf, pdf

pytestmark = pytest.mark.slow
# Whatever is asked has as many tokens as this, so that a block of text is one part.
SCRIPT = """
models: [scripted, smollm2-135m-instruct]
context_tokens_max: 600
answers:
  - when: {path: /tokenize}
    prompt_tokens: 200
  - when: {contains: flaky}
    times: 1
    status: 400
  - words: [noted, .]
    prompt_tokens: 200
    delay_s: 0.02
"""
PARAGRAPH = "The parties agree on what was said before, and on nothing else. " * 60 + "\n\n"


GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "documents.md").read_text()
# `make documents` asks for a thousand, and for more kills.
PARTS = int(os.environ.get("DOCUMENT_PARTS", "60"))
KILLS = int(os.environ.get("DOCUMENT_KILLS", "1"))


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    # The scripted upstream keeps no log of requests that could be asked after a crash.
    settings = {"STEELYARD_REQUESTS_PER_MINUTE": "1000000", "STEELYARD_RECOVERY_PATIENCE_S": "0"}
    folder = tmp_path_factory.mktemp("documents")
    with running_scripted_product(folder, SCRIPT, **settings) as running:
        yield running


def send(product: ScriptedProduct, secret: str, content: bytes, **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{product.url}/v1/documents",
        headers={"Authorization": f"Bearer {secret}"},
        data={"model": "scripted", "task": "contract", "max_tokens": "40", **fields},
        files={"file": ("contract.txt", content)},
        timeout=120,
    )


def test_a_document_is_estimated_answered_and_billed_by_part(product: ScriptedProduct) -> None:
    secret = product.tenant("acme", dollars="1")
    text = (PARAGRAPH * 12).encode()

    estimate = send(product, secret, text, dry_run="true").json()
    document = send(product, secret, text).json()

    assert estimate["parts"] > 1
    assert document["status"] == "completed"
    assert document["output_text"] == "noted."
    lines = document["parts"]
    assert len(lines) == sum(estimate["calls_by_stage"])
    assert len({line["event_id"] for line in lines}) == len(lines)
    cost = Decimal(document["usage"]["cost"])
    assert cost == sum(Decimal(line["cost"]) for line in lines)
    assert cost <= Decimal(estimate["highest_cost"])
    told = product.settled(lines[-1]["event_id"], secret)
    assert (told["endpoint"], told["cost"]) == ("/v1/documents", lines[-1]["cost"])
    again = product.get(f"/v1/documents/{document['id']}", secret).json()
    assert again == document
    other = product.tenant("somebody-else")
    assert product.get(f"/v1/documents/{document['id']}", other).status_code == 404


def events_of(streamed: str) -> list[dict[str, Any]]:
    """The events of a stream, each a line `data: ` and an empty one (WHATWG HTML, 9.2)."""
    blocks = streamed.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_progress_is_streamed(product: ScriptedProduct) -> None:
    secret = product.tenant("streaming", dollars="1")

    streamed = send(product, secret, (PARAGRAPH * 12).encode(), stream="true")

    assert streamed.headers["content-type"].startswith("text/event-stream")
    *parts, last = events_of(streamed.text)
    assert {event["type"] for event in parts} == {"document.part"}
    assert len({event["usage"]["event_id"] for event in parts}) == len(parts)
    for stage in {event["stage"] for event in parts}:
        of_stage = [event for event in parts if event["stage"] == stage]
        done = list(range(1, len(of_stage) + 1))
        assert [(e["done"], e["of"]) for e in of_stage] == [(n, len(done)) for n in done]
    assert (last["type"], last["output_text"]) == ("document.completed", "noted.")
    assert len(last["parts"]) == len(parts)


@pytest.mark.parametrize(
    "content",
    [
        b"# Terms\n\n- the buyer pays",
        pdf("The buyer pays.", "The seller delivers."),
        docx(f"{WORD}<w:p><w:r><w:t>The buyer pays.</w:t></w:r></w:p></w:document>".encode()),
        ("甲方应当在收到货物后三十日内支付全部价款。逾期付款的，按日支付违约金。" * 400).encode(),
    ],
    ids=["markdown", "pdf", "docx", "chinese"],
)
def test_every_kind_of_document_is_read(content: bytes, product: ScriptedProduct) -> None:
    secret = product.tenant(f"kind-{abs(hash(content))}", dollars="1")

    document = send(product, secret, content).json()

    assert document["status"] == "completed"
    asked = [
        request["body"]["messages"][0]["content"]
        for request in product.asked_upstream()
        if "messages" in request["body"]
    ]
    needle = "甲方应当在收到货物" if len(content) > 10_000 else "buyer pays"
    assert any(needle in text for text in asked)


def test_a_document_that_failed_is_taken_up_behind_what_is_paid(product: ScriptedProduct) -> None:
    secret = product.tenant("retrying", dollars="1")
    text = PARAGRAPH * 6 + "A flaky word. " * 200

    failed = events_of(send(product, secret, text.encode(), stream="true").text)[-1]
    paid = [line for line in failed["parts"] if line["status"] == "charged"]
    path = f"/v1/documents/{failed['id']}/retry"
    done = product.post(path, secret, {}).json()

    assert (failed["type"], failed["status"]) == ("document.failed", "failed")
    assert "400" in failed["error"]
    assert done["status"] == "completed"
    before = {line["event_id"] for line in paid}
    assert before <= {line["event_id"] for line in done["parts"]}
    wait_until(lambda: product.get("/v1/balance", secret).json()["held"] == "0")
    spent = Decimal(1) - Decimal(product.get("/v1/balance", secret).json()["available"])
    assert spent == Decimal(done["usage"]["cost"]) == len(done["parts"]) * Decimal("0.00042")
    over = product.post(path, secret, {})
    assert (over.status_code, over.json()["error"]["code"]) == (409, "document_over")
    stranger = product.tenant("stranger")
    assert product.post(path, stranger, {}).json()["error"]["code"] == "document_not_found"


def test_the_guide_runs_as_it_stands(
    product: ScriptedProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = product.folder / "documents.yaml"
    prices = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[0]
    # The other tests go on with the prices that they know.
    book.write_text(prices + PRICE_BOOK[PRICE_BOOK.index("  - match") :])
    product.command("price", "publish", str(book))
    monkeypatch.setenv("STEELYARD_URL", product.url)
    monkeypatch.setenv("STEELYARD_KEY", product.tenant("guided", dollars="1"))
    scope: dict[str, Any] = {}

    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "documents.md", "exec"), scope)

    scope["http"].close()
    assert len(scope["document"]["parts"]) == sum(scope["estimate"]["calls_by_stage"])


def test_what_could_run_out_of_money_is_not_begun(product: ScriptedProduct) -> None:
    secret = product.tenant("poor", dollars="0.0001")

    refused = send(product, secret, (PARAGRAPH * 12).encode())

    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_funds")
    assert product.get("/v1/balance", secret).json()["available"] == "0.0001"


def told(product: ScriptedProduct, secret: str, document_id: str) -> dict[str, Any]:
    return product.get(f"/v1/documents/{document_id}", secret).json()


def charged(document: dict[str, Any]) -> int:
    return sum(line["status"] == "charged" for line in document["parts"])


def begin(product: ScriptedProduct, secret: str, text: bytes) -> str:
    """Begin a document and leave as soon as its id is known; it goes on."""
    with httpx.stream(
        "POST",
        f"{product.url}/v1/documents",
        headers={"Authorization": f"Bearer {secret}"},
        data={"model": "scripted", "task": "summary", "max_tokens": "40", "stream": "true"},
        files={"file": ("long.txt", text)},
        timeout=600,
    ) as streamed:
        line = next(line for line in streamed.iter_lines() if line.startswith("data: {"))
        return json.loads(line[6:])["id"]


def test_after_a_kill_every_part_is_charged_once(product: ScriptedProduct) -> None:
    secret = product.tenant("killed", dollars="10")
    document_id = begin(product, secret, (PARAGRAPH * PARTS).encode())
    total = len(told(product, secret, document_id)["parts"])

    for kill in range(1, KILLS + 1):
        enough = total * kill // (KILLS + 1)
        wait_until(
            lambda enough=enough: charged(told(product, secret, document_id)) >= enough,
            within_s=1_200,
        )
        product.processes["gateway"].send_signal(signal.SIGKILL)
        product.processes["gateway"].wait()
        product.closing.callback(stop_process, product.start("gateway", "gateway"))
        wait_until(lambda: product.is_ready(f"{product.url}/health"), within_s=120)
        assert told(product, secret, document_id)["status"] == "running"
    wait_until(lambda: told(product, secret, document_id)["status"] != "running", within_s=1_200)

    wait_until(lambda: product.get("/v1/balance", secret).json()["held"] == "0", within_s=120)
    document = told(product, secret, document_id)
    assert document["status"] == "completed"
    lines = document["parts"]
    first = [line["place"] for line in lines if line["stage"] == 0]
    assert first == list(range(len(first)))
    assert len(first) >= PARTS
    assert charged(document) == len(lines) == len({line["event_id"] for line in lines})
    spent = Decimal(10) - Decimal(product.get("/v1/balance", secret).json()["available"])
    assert spent == sum(Decimal(line["cost"]) for line in lines) == len(lines) * Decimal("0.00042")
    assert product.command("verify")["holds"] is True


def test_bad_documents_are_refused_and_cost_nothing(product: ScriptedProduct) -> None:
    secret = product.tenant("bad", dollars="1")
    bad = {
        "file_empty": b"",
        "document_empty": b"  \n ",
        "document_too_large": docx(b"<a>" + b" " * 200_000_000),
        "document_encrypted": locked_pdf(),
        "document_unreadable": b"\x00\x01\x02 no text",
    }

    codes = {
        code: send(product, secret, content).json()["error"]["code"]
        for code, content in bad.items()
    }

    assert codes == {code: code for code in bad}
    assert send(product, secret, b"text", task="poem").status_code == 400
    no_form = product.post("/v1/documents", secret, {})
    assert (no_form.status_code, no_form.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert product.get("/v1/balance", secret).json()["available"] == "1"
