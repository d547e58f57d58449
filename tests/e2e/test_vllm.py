"""vLLM's own server as the upstream: opt-in, for an environment of 2.4 GB that has it.

VLLM_PYTHON=/path/to/its/python pytest -m slow tests/e2e/test_vllm.py; `docs/benchmarks.md` says how
such an environment is made.
"""

import os
import signal
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from steelyard.engine.gguf_conversion import convert_gguf
from steelyard.engine.model_source import find_model_source
from tests.e2e.product import picos, wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_before
from tests.postgres_server import free_port

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no interpreter"),
]
ROOT = Path(__file__).parents[2]
MODELS_DIR = Path(os.environ.get("STEELYARD_MODELS_DIR", ROOT / ".steelyard" / "models"))
CONFIGURATION = """
[upstreams.rack]
kind = "vllm"
url = "{url}"

[models.smollm2]
deployments = [{{ upstream = "rack" }}]
tokenizer = {{ byte_level = true, template_tokens_base = 40, template_tokens_per_message = 8 }}
"""
INPUT_PRICE, CACHED_PRICE, OUTPUT_PRICE = 2_000_000, 1_000_000, 10_000_000


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    folder = convert_gguf(
        Path(find_model_source("smollm2").location), MODELS_DIR, progress=print
    ).resolve()
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "vllm.log"
    command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "smollm2", "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-prompt-tokens-details", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    quiet |= {"OMP_WAIT_POLICY": "PASSIVE", "DO_NOT_TRACK": "1"}
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | quiet, stdout=output, stderr=output)
        try:
            wait_until(lambda: is_ready(process, url, log), within_s=400)
            yield url
        finally:
            for worker in psutil.Process(process.pid).children(recursive=True):
                worker.kill()
            process.send_signal(signal.SIGKILL)
            process.wait()


def is_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def product(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder = tmp_path_factory.mktemp("product")
    configuration = folder / "steelyard.toml"
    configuration.write_text(CONFIGURATION.format(url=vllm))
    with running_before(vllm, folder, STEELYARD_CONFIG=str(configuration)) as running:
        yield running


def ask(product: ScriptedProduct, secret: str, number: int, *, stream: bool) -> Any:
    """The usage that the client is told, and the text that it got."""
    asked: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": f"第{number}位：写一句关于北京的话。"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    client = product.openai(secret)
    if not stream:
        answer = client.chat.completions.create(**asked)
        return answer.usage, answer.choices[0].message.content
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return chunks[-1].usage, text


def test_crowds_are_charged_what_vllm_counts(product: ScriptedProduct, vllm: str) -> None:
    secret = product.tenant("crowd", dollars="1")
    before = counters(vllm)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, product, secret, i, stream=i % 2 == 0) for i in range(8)]
        told = [future.result() for future in asked]

    usages = [usage for usage, _ in told]
    after = counters(vllm)
    assert all(text for _, text in told)
    # What vLLM itself has counted in the meantime is what the clients were told.
    assert sum(usage.prompt_tokens for usage in usages) == after["prompt"] - before["prompt"]
    assert sum(usage.completion_tokens for usage in usages) == (
        after["generation"] - before["generation"]
    )
    for usage in usages:
        cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
        assert picos(usage.model_extra["cost"]) == (
            (usage.prompt_tokens - cached) * INPUT_PRICE
            + cached * CACHED_PRICE
            + usage.completion_tokens * OUTPUT_PRICE
        )
        event = product.settled(usage.model_extra["event_id"], secret)
        assert event["status"] == "settled"
    # Exit status 0: no difference.
    product.command("verify")


def test_a_client_that_leaves_frees_its_place_and_is_charged_for_what_it_got(
    product: ScriptedProduct, vllm: str
) -> None:
    secret = product.tenant("leaver", dollars="1")
    stream = product.openai(secret).chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=2_000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _, _chunk in zip(range(6), stream, strict=False):
        pass
    stream.close()

    wait_until(lambda: counters(vllm)["running"] == 0)
    wait_until(lambda: product.command("balance", "leaver")["held"] == "0")

    [event] = product.command("usage", "--tenant", "leaver/it")
    assert event["end_cause"] == "client_left"
    assert 0 < picos(event["amount"]) < 100 * OUTPUT_PRICE
    # Exit status 0: no difference.
    product.command("verify")


def counters(url: str) -> dict[str, float]:
    """What vLLM says of itself."""
    names = {
        "vllm:prompt_tokens_total": "prompt",
        "vllm:generation_tokens_total": "generation",
        "vllm:num_requests_running": "running",
    }
    lines = httpx.get(f"{url}/metrics", timeout=20).text.splitlines()
    found = {
        names[line.partition("{")[0]]: float(line.rpartition(" ")[2])
        for line in lines
        if line.partition("{")[0] in names
    }
    assert set(found) == set(names.values()), lines
    return found
