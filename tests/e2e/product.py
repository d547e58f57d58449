"""The whole product as real processes: `steelyard serve` on free ports, with its command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from tests.postgres_server import free_port

# The first start of the demo model converts it, which takes most of a minute.
READY_WITHIN_S = 300.0
MODEL = "tiny"
PRICE_BOOK = """
schema: steelyard.price-book/v1
name: e2e
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: "*"
    prices:
      input.text: { amount: 3, per: 1M }
      output.text: { amount: 7, per: 1M }
"""
INPUT_PRICE = 3_000_000
OUTPUT_PRICE = 7_000_000


@dataclass
class Product:
    """A running product and everything that a user does with it."""

    data_dir: Path
    environment: dict[str, str]
    process: "subprocess.Popen[str]"
    output: Path
    secrets: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['STEELYARD_GATEWAY_PORT']}"

    def command(self, *words: str, status: int = 0) -> Any:
        """Run the command with --json and read what it says."""
        finished = run_command(*words, environment=self.environment)
        assert finished.returncode == status, finished.stdout + finished.stderr
        return json.loads(finished.stdout)

    def tenant(
        self, name: str, *, dollars: str | None = "1", key_options: tuple[str, ...] = ()
    ) -> str:
        """An organisation with one department and one key; returns the secret."""
        self.command("org", "create", name)
        self.command("department", "create", f"{name}/it")
        made = self.command("key", "create", f"{name}/it", "key", *key_options)
        if dollars:
            self.command("credit", "add", name, dollars)
        self.secrets[name] = made["secret"]
        return made["secret"]

    def openai(self, secret: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=120)

    def post(self, path: str, secret: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.url + path, content=content, headers=headers, timeout=120, **options)

    def balance_picos(self, name: str) -> int:
        return picos(self.command("balance", name)["total"])

    def settled_balance_picos(self, name: str) -> int:
        """The balance once nothing is held any more."""
        wait_until(lambda: self.command("balance", name)["held"] == "0")
        return self.balance_picos(name)

    def events(self, department: str) -> list[dict[str, Any]]:
        return self.command("usage", "--tenant", department, "--limit", "1000")

    def verdict(self) -> dict[str, Any]:
        finished = run_command("verify", environment=self.environment)
        return json.loads(finished.stdout)

    def kill(self, role: str) -> None:
        """SIGKILL one process of the product."""
        self.process_of(role).kill()

    def process_of(self, role: str) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.cmdline()[-1] == role)

    def wait_until_ready(self) -> None:
        wait_until(self._answers, within_s=READY_WITHIN_S)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        engine = f"http://127.0.0.1:{self.environment['STEELYARD_ENGINE_PORT']}"
        try:
            return all(httpx.get(f"{u}/health").status_code == 200 for u in (engine, self.url))
        except httpx.TransportError:
            return False


def picos(decimal: str) -> int:
    """An amount in picos, by a path of its own."""
    whole, _, fraction = decimal.partition(".")
    return int(whole) * 10**12 + int(fraction.ljust(12, "0"))


def wait_until(claim: Callable[[], bool], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def product_environment(data_dir: Path, **settings: str) -> dict[str, str]:
    return {
        **os.environ,
        "STEELYARD_DATA_DIR": str(data_dir),
        "STEELYARD_GATEWAY_PORT": str(free_port()),
        "STEELYARD_ENGINE_PORT": str(free_port()),
        "STEELYARD_GATEWAY_METRICS_PORT": "0",
        "STEELYARD_WORKER_METRICS_PORT": "0",
        **settings,
    }


def run_command(*words: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    # What follows a lone "--" is no option any more.
    where = words.index("--") if "--" in words else len(words)
    command = [sys.executable, "-m", "steelyard", *words[:where], "--json", *words[where:]]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def run_serve(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """A `serve` that is expected to give up by itself."""
    command = [sys.executable, "-m", "steelyard", "serve"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


@contextmanager
def running_product(data_dir: Path, **settings: str) -> Generator[Product]:
    """Start everything, publish prices, and stop it in order afterwards."""
    environment = product_environment(data_dir, **settings)
    run_command("init", environment=environment)
    book = data_dir / "prices.yaml"
    book.write_text(PRICE_BOOK)
    output = data_dir / "serve.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "steelyard", "serve"],
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )
        product = Product(data_dir, environment, process, output)
        try:
            product.command("price", "publish", str(book))
            product.wait_until_ready()
            yield product
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
