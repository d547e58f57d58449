"""A gateway and a worker as real processes in front of a scripted upstream: no model, no engine."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from tests.e2e.product import product_environment, run_command, wait_until
from tests.postgres_server import free_port

PRICE_BOOK = """
schema: steelyard.price-book/v1
name: scripted
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: "*"
    prices:
      input.text: { amount: 2, per: 1M }
      input.text.cache_read: { amount: 1, per: 1M }
      output.text: { amount: 10, per: 1M }
"""


@dataclass
class ScriptedProduct:
    """A running gateway, and everything that a user does with it."""

    environment: dict[str, str]
    upstream_url: str
    folder: Path
    closing: ExitStack
    processes: dict[str, "subprocess.Popen[str]"] = field(
        default_factory=dict[str, "subprocess.Popen[str]"]
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['STEELYARD_GATEWAY_PORT']}"

    def command(self, *words: str, status: int = 0) -> Any:
        finished = run_command(*words, environment=self.environment)
        assert finished.returncode == status, finished.stdout + finished.stderr
        return json.loads(finished.stdout)

    def tenant(self, name: str, *, dollars: str = "1", key_options: tuple[str, ...] = ()) -> str:
        """An organisation with one department and one key; returns the secret."""
        self.command("org", "create", name)
        self.command("department", "create", f"{name}/it")
        made = self.command("key", "create", f"{name}/it", "key", *key_options)
        self.command("credit", "add", name, dollars)
        return made["secret"]

    def openai(self, secret: str) -> openai.OpenAI:
        return self.closing.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=60)
        )

    def anthropic(self, secret: str) -> anthropic.Anthropic:
        return self.closing.enter_context(
            anthropic.Anthropic(base_url=self.url, api_key=secret, max_retries=0, timeout=60)
        )

    def get(self, path: str, secret: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {secret}"})

    def post(self, path: str, secret: str, body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def asked_upstream(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.upstream_url}/scripted/requests").json()["requests"]

    def settled(self, event_id: str, secret: str) -> dict[str, Any]:
        """What the books say of an event, once they have it."""
        wait_until(lambda: self.get(f"/v1/usage/{event_id}", secret).json()["status"] == "settled")
        return self.get(f"/v1/usage/{event_id}", secret).json()

    def start(self, name: str, *words: str) -> "subprocess.Popen[str]":
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "steelyard", *words],
                env=self.environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.processes[name] = process
        return process

    def is_ready(self, url: str) -> bool:
        try:
            return httpx.get(url).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running_scripted_product(
    folder: Path, script: str, **settings: str
) -> Generator[ScriptedProduct]:
    """Start upstream, gateway and worker, publish prices, and stop them in order afterwards."""
    port = free_port()
    (folder / "script.yaml").write_text(script)
    words = ("scripted-upstream", str(folder / "script.yaml"), "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    with running_before(url, folder, upstream=words, **settings) as product:
        wait_until(lambda: product.is_ready(f"{url}/v1/models"))
        yield product


@contextmanager
def running_before(
    upstream_url: str, folder: Path, *, upstream: tuple[str, ...] = (), **settings: str
) -> Generator[ScriptedProduct]:
    """Gateway and worker before an upstream, which is started with them or runs already."""
    environment = product_environment(
        folder / "data", STEELYARD_ENGINE_URL=upstream_url, **settings
    )
    (folder / "prices.yaml").write_text(PRICE_BOOK)
    run_command("init", environment=environment)
    with ExitStack() as stack:
        product = ScriptedProduct(environment, upstream_url, folder, stack)
        product.command("price", "publish", str(folder / "prices.yaml"))
        starting = [("worker", "worker"), ("gateway", "gateway")]
        for name, *words in [("upstream", *upstream), *starting] if upstream else starting:
            stack.callback(stop_process, product.start(name, *words))
        wait_until(lambda: product.is_ready(f"{product.url}/health"), within_s=120)
        yield product


def stop_process(process: "subprocess.Popen[str]") -> None:
    """Ask it to stop, if it has not, and wait until it has."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
