"""A gateway and a worker as real processes in front of several scripted upstreams."""

import asyncio
import json
import os
import signal
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.product import product_environment, run_command, wait_until
from tests.e2e.scripted_product import PRICE_BOOK, ScriptedProduct, stop_process
from tests.postgres_server import free_port


@dataclass
class RoutedProduct(ScriptedProduct):
    """A product whose configuration file names upstreams by their scripts."""

    ports: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def configuration(self) -> Path:
        return self.folder / "steelyard.toml"

    def configure(self, text: str) -> None:
        """Write the file in one step, with `NAME_URL` for the address of each upstream."""
        for name, port in self.ports.items():
            text = text.replace(f"{name}_URL", f"http://127.0.0.1:{port}")
        beside = self.folder / "steelyard.toml.new"
        beside.write_text(text)
        os.replace(beside, self.configuration)

    def start_upstream(self, name: str) -> None:
        script = str(self.folder / f"{name}.yaml")
        port = self.ports[name]
        process = self.start(name, "scripted-upstream", script, "--port", str(port))
        self.closing.callback(stop_process, process)
        wait_until(lambda: self.is_ready(f"http://127.0.0.1:{port}/v1/models"))

    def start_gateway(self) -> None:
        self.closing.callback(stop_process, self.start("gateway", "gateway"))
        wait_until(lambda: self.is_ready(f"{self.url}/health"))

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def asked(self, name: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self.ports[name]}/scripted/requests"
        return httpx.get(url).json()["requests"]

    def log(self, name: str) -> list[dict[str, Any]]:
        """What a process logged; lines of other shapes are left out."""
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def attempts_of(self, request_id: str, secret: str) -> list[dict[str, Any]]:
        """What the books say of each attempt of a request, the first one first."""
        # Lines are written in the pass of the event loop that follows their answer.
        httpx.get(f"{self.url}/health/live")
        served = [line for line in self.log("gateway") if line["event"] == "request.served"]
        ids = [line["event_id"] for line in served if line["request_id"] == request_id]
        return [self.settled(event_id, secret) for event_id in ids]

    def wait_until_nothing_is_held(self, name: str) -> None:
        wait_until(lambda: self.command("balance", name)["held"] == "0")

    def assert_books_are_right(self) -> None:
        assert run_command("verify", environment=self.environment).returncode == 0


@dataclass
class StreamSeen:
    """What one client got of one stream."""

    status: int = 0
    text: str = ""
    cost: str | None = None
    event_id: str | None = None
    is_whole: bool = False
    error: str | None = None


async def read_stream(product: RoutedProduct, secret: str, **fields: Any) -> StreamSeen:
    """Ask for a stream and read it to its end, however it ends."""
    seen = StreamSeen()
    body = {
        "messages": [{"role": "user", "content": "say it"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    headers = {"Authorization": f"Bearer {secret}"}
    url = f"{product.url}/v1/chat/completions"
    try:
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            seen.status = response.status_code
            seen.event_id = response.headers.get("x-steelyard-event-id")
            async for line in response.aiter_lines():
                _read_line(line, seen)
    except httpx.TransportError as error:
        seen.error = type(error).__name__
    return seen


def _read_line(line: str, seen: StreamSeen) -> None:
    payload = line.removeprefix("data: ")
    if payload == "[DONE]":
        seen.is_whole = True
    elif line.startswith("data: "):
        chunk = json.loads(payload)
        if "error" in chunk:
            seen.error = chunk["error"]["code"]
        if chunk.get("usage"):
            seen.cost = chunk["usage"]["cost"]
        for choice in chunk.get("choices", []):
            seen.text += choice["delta"].get("content") or ""


async def read_streams(
    product: RoutedProduct, secret: str, *, count: int, **fields: Any
) -> list[StreamSeen]:
    """So many streams at once."""
    reading = (read_stream(product, secret, **fields) for _ in range(count))
    return list(await asyncio.gather(*reading))


@contextmanager
def running_routed_product(
    folder: Path, configuration: str, scripts: Mapping[str, str], **settings: str
) -> Generator[RoutedProduct]:
    """Start the upstreams, a worker and a gateway, and stop them in order afterwards."""
    folder.mkdir(exist_ok=True)
    environment = product_environment(
        folder / "data", STEELYARD_CONFIG=str(folder / "steelyard.toml"), **settings
    )
    with ExitStack() as stack:
        product = RoutedProduct(environment, "", folder, stack)
        product.ports = {name: free_port() for name in scripts}
        product.configure(configuration)
        for name, script in scripts.items():
            (folder / f"{name}.yaml").write_text(script)
            product.start_upstream(name)
        (folder / "prices.yaml").write_text(PRICE_BOOK)
        run_command("init", environment=environment)
        product.command("price", "publish", str(folder / "prices.yaml"))
        stack.callback(stop_process, product.start("worker", "worker"))
        product.start_gateway()
        yield product
