"""Documents against running processes: cut, answered part by part, put together, and finished after
a kill with every part charged once."""

import io
import signal
import time
import zipfile
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pypdf import PdfWriter

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
# Whatever is asked has as many tokens as this, so that a block of text is one part.
SCRIPT = """
models: [scripted]
context_tokens_max: 600
answers:
  - when: {path: /tokenize}
    prompt_tokens: 200
  - words: [noted, .]
    prompt_tokens: 200
    delay_s: 0.02
"""
PARAGRAPH = "The parties agree on what was said before, and on nothing else. " * 60 + "\n\n"


@pytest.fixture
def product(tmp_path: Path) -> Generator[ScriptedProduct]:
    # The scripted upstream keeps no log of requests that could be asked after a crash.
    settings = {"STEELYARD_REQUESTS_PER_MINUTE": "100000", "STEELYARD_RECOVERY_PATIENCE_S": "0"}
    with running_scripted_product(tmp_path, SCRIPT, **settings) as running:
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
    other = product.tenant("other")
    assert product.get(f"/v1/documents/{document['id']}", other).status_code == 404


def test_progress_is_streamed(product: ScriptedProduct) -> None:
    secret = product.tenant("acme", dollars="1")

    streamed = send(product, secret, (PARAGRAPH * 6).encode(), stream="true")

    assert streamed.text.count('"type":"document.part"') >= 2
    assert '"type":"document.completed"' in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_what_could_run_out_of_money_is_not_begun(product: ScriptedProduct) -> None:
    secret = product.tenant("acme", dollars="0.0001")

    refused = send(product, secret, (PARAGRAPH * 12).encode())

    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_funds")
    assert product.get("/v1/balance", secret).json()["available"] == "0.0001"


def test_after_a_kill_every_part_is_charged_once(product: ScriptedProduct) -> None:
    secret, document_id = product.tenant("acme", dollars="10"), ""
    text = (PARAGRAPH * 100).encode()
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream(
            "POST",
            f"{product.url}/v1/documents",
            headers={"Authorization": f"Bearer {secret}"},
            data={"model": "scripted", "task": "summary", "max_tokens": "40", "stream": "true"},
            files={"file": ("long.txt", text)},
            timeout=120,
        ) as streamed,
    ):
        seen = 0
        for line in streamed.iter_lines():
            if "document.part" in line:
                seen += 1
                document_id = httpx.Response(200, text=line[6:]).json()["id"]
            if seen == 20:
                product.processes["gateway"].send_signal(signal.SIGKILL)
    product.processes["gateway"].wait()

    restarted = product.start("gateway", "gateway")
    wait_until(lambda: product.is_ready(f"{product.url}/health"))

    def told() -> dict[str, Any]:
        return product.get(f"/v1/documents/{document_id}", secret).json()

    deadline = time.monotonic() + 200
    while told()["status"] == "running":
        assert time.monotonic() < deadline, told()["status"]
        time.sleep(0.5)
    wait_until(lambda: product.get("/v1/balance", secret).json()["held"] == "0")
    document = told()
    assert document["status"] == "completed"
    lines = document["parts"]
    assert len(lines) > 60
    assert {line["status"] for line in lines} == {"charged"}
    assert len({line["event_id"] for line in lines}) == len(lines)
    spent = Decimal(10) - Decimal(product.get("/v1/balance", secret).json()["available"])
    assert spent == sum(Decimal(line["cost"]) for line in lines) == len(lines) * Decimal("0.00042")
    assert product.command("verify")["holds"] is True
    restarted.terminate()
    restarted.wait()


def test_bad_documents_are_refused_and_cost_nothing(product: ScriptedProduct) -> None:
    secret = product.tenant("acme", dollars="1")
    bomb, locked = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", b"<a>" + b" " * 200_000_000)
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    writer.write(locked)
    bad = {
        "file_empty": b"",
        "document_empty": b"  \n ",
        "document_too_large": bomb.getvalue(),
        "document_encrypted": locked.getvalue(),
        "document_unreadable": b"\x00\x01\x02 no text",
    }

    codes = {
        code: send(product, secret, content).json()["error"]["code"]
        for code, content in bad.items()
    }

    assert codes == {code: code for code in bad}
    assert send(product, secret, b"text", task="poem").status_code == 400
    assert (
        httpx.post(
            f"{product.url}/v1/documents", headers={"Authorization": f"Bearer {secret}"}, json={}
        ).status_code
        == 415
    )
    assert product.get("/v1/balance", secret).json()["available"] == "1"
