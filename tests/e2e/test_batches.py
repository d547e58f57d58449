"""Batches through OpenAI's client, against running processes; and what a kill does to them."""

import io
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
answers:
  - when: {contains: broken}
    status: 400
  - when: {contains: slow}
    words: [slow]
    delay_s: 0.05
  - words: [done]
"""
BOOK = """
schema: steelyard.price-book/v1
name: batches
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    prices:
      input.text: { amount: 2, per: 1M }
      output.text: { amount: 10, per: 1M }
    batch: { percent: -50 }
"""
# Seven tokens in and one out, at half of the price.
LINE_COST = (7 * Decimal(2) + 10) / 10**6 / 2


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder: Path = tmp_path_factory.mktemp("batches")
    with running_scripted_product(
        folder, SCRIPT, STEELYARD_REQUESTS_PER_MINUTE="1000000"
    ) as running:
        (folder / "batches.yaml").write_text(BOOK)
        running.command("price", "publish", str(folder / "batches.yaml"))
        time.sleep(1)
        yield running


def _lines(count: int, content: str = "hello") -> bytes:
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "scripted",
                "messages": [{"role": "user", "content": f"{content} {number}"}],
            },
        }
        for number in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _completed(client: openai.OpenAI, batch_id: str) -> int:
    return _completed_of(client.batches.retrieve(batch_id))


def _completed_of(batch: Batch) -> int:
    assert batch.request_counts is not None, "a batch says how far it is"
    return batch.request_counts.completed


def _begin(client: openai.OpenAI, content: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def _end(client: openai.OpenAI, batch_id: str) -> Any:
    over = {"completed", "failed", "cancelled", "expired"}
    wait_until(lambda: client.batches.retrieve(batch_id).status in over, within_s=120)
    return client.batches.retrieve(batch_id)


def _results(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def _spent(product: ScriptedProduct, secret: str, dollars: int) -> Decimal:
    balance = product.get("/v1/balance", secret).json()
    return dollars - Decimal(balance["available"]) - Decimal(balance["held"])


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.wait(timeout=60)


def test_a_batch_is_answered_and_costs_what_the_book_says_of_batches(
    product: ScriptedProduct,
) -> None:
    secret = product.tenant("acme", dollars="10")
    client = product.openai(secret)

    batch = _begin(client, _lines(30) + _lines(1, "broken").replace(b"line-0", b"bad"))
    over = _end(client, batch.id)

    assert (over.status, over.request_counts.total) == ("completed", 31)
    assert (over.request_counts.completed, over.request_counts.failed) == (30, 1)
    results = _results(client, over.output_file_id)
    assert {result["custom_id"] for result in results} == {f"line-{n}" for n in range(30)}
    usage = results[0]["response"]["body"]["usage"]
    assert Decimal(usage["cost"]) == LINE_COST
    settled = product.settled(usage["event_id"], secret)
    assert Decimal(settled["cost"]) == LINE_COST
    [refused] = _results(client, over.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("bad", 400)
    wait_until(lambda: _spent(product, secret, 10) == 30 * LINE_COST)
    assert batch.id in {one.id for one in client.batches.list()}


def test_the_statement_shows_what_a_batch_costs_beside_a_chat(product: ScriptedProduct) -> None:
    secret = product.tenant("beside", dollars="10")
    client = product.openai(secret)
    client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hello"}]
    )

    _end(client, _begin(client, _lines(10)).id)
    wait_until(lambda: _spent(product, secret, 10) == 12 * LINE_COST)
    lines = product.command("statement", "beside")["lines"]

    prices = {(line["meter"], Decimal(line["price"]) * 10**6): int(line["count"]) for line in lines}
    assert prices == {
        ("input.text", Decimal(2)): 7,
        ("input.text", Decimal(1)): 70,
        ("output.text", Decimal(10)): 1,
        ("output.text", Decimal(5)): 10,
    }
    assert sum(Decimal(line["amount"]) for line in lines) == 12 * LINE_COST


def test_pages_of_batches_are_gone_through_by_openais_client(product: ScriptedProduct) -> None:
    client = product.openai(product.tenant("paging", dollars="1"))
    file = client.files.create(file=("in.jsonl", io.BytesIO(_lines(1))), purpose="batch")
    made = [
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"number": str(number)},
        )
        for number in range(5)
    ]

    listed = list(client.batches.list(limit=2))

    assert [one.id for one in listed] == [one.id for one in reversed(made)]
    assert [one.metadata for one in listed] == [{"number": str(n)} for n in (4, 3, 2, 1, 0)]
    for one in made:
        over = _end(client, one.id)
        assert (over.expires_at - over.created_at, over.completion_window) == (86_400, "24h")
        assert over.completed_at >= over.in_progress_at >= over.created_at
        assert over.error_file_id is None


def test_a_batch_whose_gateway_is_killed_goes_on_and_charges_each_line_once(
    product: ScriptedProduct,
) -> None:
    secret = product.tenant("killed", dollars="10")
    client, count = product.openai(secret), 1_200
    batch = _begin(client, _lines(count, "slow"))

    for _ in range(2):
        before = _completed(client, batch.id)
        wait_until(lambda done=before: _completed(client, batch.id) > done + 99)
        gateway = product.processes["gateway"]
        gateway.send_signal(signal.SIGKILL)
        gateway.wait()
        started = product.start("gateway", "gateway")
        product.closing.callback(_stop, started)
        wait_until(lambda: product.is_ready(f"{product.url}/health"))
    over = _end(client, batch.id)

    assert (over.request_counts.completed, over.request_counts.failed) == (count, 0)
    names = Counter(result["custom_id"] for result in _results(client, over.output_file_id))
    assert names == Counter({f"line-{number}": 1 for number in range(count)})
    wait_until(lambda: _spent(product, secret, 10) == count * LINE_COST, within_s=60)
    product.command("verify", "--json")


def test_a_short_batch_does_not_wait_for_the_end_of_a_long_one(product: ScriptedProduct) -> None:
    client = product.openai(product.tenant("patient", dollars="10"))
    long = _begin(client, _lines(3_000, "slow"))
    wait_until(lambda: _completed(client, long.id) > 20)

    over = _end(client, _begin(client, _lines(20)).id)

    assert over.request_counts.completed == 20
    assert _completed_of(client.batches.cancel(long.id)) < 3_000
    assert _end(client, long.id).status == "cancelled"


def test_a_cancelled_batch_keeps_what_it_has(product: ScriptedProduct) -> None:
    secret = product.tenant("cancelling", dollars="10")
    client = product.openai(secret)
    batch = _begin(client, _lines(1_000, "slow"))
    wait_until(lambda: _completed(client, batch.id) > 20)

    client.batches.cancel(batch.id)
    over = _end(client, batch.id)

    assert over.status == "cancelled"
    assert 20 < over.request_counts.completed < 1_000
    assert len(_results(client, over.output_file_id)) == over.request_counts.completed
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"not json\n", "invalid_json_line"),
        (_lines(1).replace(b"POST", b"GET"), "invalid_method"),
        (_lines(1).replace(b"/v1/chat/completions", b"/v1/embeddings"), "mismatched_url"),
        (_lines(1) + _lines(1), "duplicate_custom_id"),
        (b"\n\n", "empty_file"),
        (_lines(1) * 100_001, "duplicate_custom_id"),
    ],
    ids=["json", "method", "url", "twice", "empty", "many"],
)
def test_a_file_with_a_mistake_fails_before_anything_is_asked(
    content: bytes, code: str, product: ScriptedProduct
) -> None:
    client = product.openai(product.tenant(f"wrong-{abs(hash(content))}", dollars="1"))

    over = _end(client, _begin(client, content).id)

    assert over.status == "failed"
    assert over.errors.data[0].code == code
    assert over.request_counts.completed == 0


def test_files_belong_to_their_key(product: ScriptedProduct) -> None:
    mine = product.openai(product.tenant("mine", dollars="1"))
    other = product.openai(product.tenant("other", dollars="1"))
    file = mine.files.create(file=("a.jsonl", b"abc"), purpose="batch")

    with pytest.raises(openai.NotFoundError):
        other.files.retrieve(file.id)
    assert mine.files.content(file.id).text == "abc"
    assert mine.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        mine.files.retrieve(file.id)


def test_bad_uploads_and_batches_are_refused_by_name(product: ScriptedProduct) -> None:
    secret = product.tenant("bad-uploads", dollars="1")
    client = product.openai(secret)

    with pytest.raises(openai.BadRequestError, match="is empty"):
        client.files.create(file=("a.jsonl", b""), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a.jsonl", b"x"), purpose="assistants")
    with pytest.raises(openai.NotFoundError):
        client.batches.create(
            input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h"
        )
    unknown: Any = "/v1/images"
    with pytest.raises(openai.BadRequestError, match="a batch is for"):
        client.batches.create(input_file_id="file-x", endpoint=unknown, completion_window="24h")
    assert product.post("/v1/files", secret, {}).status_code == 415
