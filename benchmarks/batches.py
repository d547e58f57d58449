"""How fast a batch is answered, beside the same requests sent one by one, and how much memory grows.

A scripted upstream, a gateway and a worker are processes of their own; every line is held for,
recorded, charged and settled. The same gateway is asked in turn, in pairs: by clients over HTTP, and
by a batch; as many requests at once as a batch has lines. Then one batch of all lines, during which
the gateway's memory is looked at. The last line is one JSON object.

Run: make bench-batches                     100,000 lines
     make bench-batches LINES=10000
"""

import argparse
import asyncio
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

console = Console(stderr=True, highlight=False)
SCRIPT = """
models: [scripted]
answers:
  - words: [done]
"""
PATH: Final = "/v1/chat/completions"
LOOK_S = 0.1
WARM_UP = 2_000
PAIRS = 3
PAIRED = 5_000
FUNDS = Decimal(1_000)


@dataclass
class Turn:
    """Some requests, how long they took, and what processor time the gateway needed for them."""

    requests: int
    seconds: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s * 1e6 / self.requests


@dataclass
class Memory:
    """The gateway's resident memory, by how many lines had an answer."""

    done: list[int] = field(default_factory=list[int])
    resident: list[int] = field(default_factory=list[int])

    def note(self, done: int, process: psutil.Process) -> None:
        self.done.append(done)
        self.resident.append(process.memory_info().rss)

    def slope(self) -> float:
        """Bytes a line, over the second half: the first fills what is kept in any case."""
        half = len(self.done) // 2
        return statistics.linear_regression(self.done[half:], self.resident[half:]).slope


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), lines=options.lines, at_once=options.at_once)))


def measure(folder: Path, *, lines: int, at_once: int) -> dict[str, Any]:
    """Pairs of some thousand each for the rate, the first alternating; then all lines."""
    with _running(folder, at_once=at_once) as product:
        secret = product.tenant("bench", dollars=str(FUNDS))
        bench = Bench(product, secret, at_once)
        bench.ask(WARM_UP)
        asked: list[Turn] = []
        batches: list[Turn] = []
        for number in range(PAIRS):
            for turns, take in bench.in_turn(number, asked, batches):
                turns.append(take(min(PAIRED, lines)))
            console.print(f"gateway {asked[-1].per_s:.0f}/s, batch {batches[-1].per_s:.0f}/s")
        memory = Memory()
        whole = bench.run_batch(lines, memory)
        console.print(f"{lines} lines: {whole.per_s:.0f}/s")
        bench.expect_each_paid_once()
    ratios = [batch.per_s / alone.per_s for alone, batch in zip(asked, batches, strict=True)]
    mega = [memory.resident[0], memory.resident[-1], max(memory.resident)]
    return {
        "batch_requests_per_s": round(whole.per_s, 1),
        "batch_ratio": round(statistics.median(ratios), 3),
        "batch_ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
        "batch_requests_per_s_in_turn": [round(turn.per_s, 1) for turn in batches],
        "gateway_requests_per_s": round(statistics.median(turn.per_s for turn in asked), 1),
        "gateway_requests_per_s_in_turn": [round(turn.per_s, 1) for turn in asked],
        "batch_cpu_us": round(statistics.median(turn.cpu_us for turn in [*batches, whole])),
        "gateway_cpu_us": round(statistics.median(turn.cpu_us for turn in asked)),
        "memory_bytes_a_line": round(memory.slope(), 1),
        "memory_mb_first_last_most": [round(size / 1e6, 1) for size in mega],
        "lines": lines,
        "at_once": at_once,
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
    }


@contextmanager
def _running(folder: Path, *, at_once: int) -> Generator[ScriptedProduct]:
    settings = {
        "STEELYARD_REQUESTS_PER_MINUTE": "100000000",
        "STEELYARD_BATCH_LINES_AT_ONCE": str(at_once),
    }
    with running_scripted_product(folder, SCRIPT, **settings) as product:
        yield product


@dataclass
class Bench:
    """Asks one gateway, by clients over HTTP or by batches, and counts what was asked."""

    product: ScriptedProduct
    secret: str
    at_once: int
    count: int = 0

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.product.processes["gateway"].pid)

    def in_turn(self, number: int, asked: list[Turn], batches: list[Turn]) -> list[Any]:
        pair = [(asked, self.ask), (batches, self.run_batch)]
        return pair if number % 2 else pair[::-1]

    def ask(self, requests: int) -> Turn:
        self.count += requests
        cpu_s, started = _cpu_s(self.process), time.perf_counter()
        asyncio.run(
            _ask_all(self.product.url, self.secret, requests=requests, at_once=self.at_once)
        )
        return Turn(requests, time.perf_counter() - started, _cpu_s(self.process) - cpu_s)

    def run_batch(self, lines: int, memory: Memory | None = None) -> Turn:
        """From the order to the end of the batch, its check and its files included."""
        self.count += lines
        client, process = self.product.openai(self.secret), self.process
        content = b"".join(_line(number) for number in range(lines))
        file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
        cpu_s, started = _cpu_s(process), time.perf_counter()
        batch = client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h")
        while batch.status in {"validating", "in_progress", "finalizing"}:
            time.sleep(LOOK_S)
            batch = client.batches.retrieve(batch.id)
            if memory is not None and batch.request_counts is not None:
                memory.note(batch.request_counts.completed, process)
        seconds, cpu_s = time.perf_counter() - started, _cpu_s(process) - cpu_s
        counts = batch.request_counts
        assert counts is not None, "a batch says how far it is"
        assert (batch.status, counts.completed, counts.failed) == ("completed", lines, 0), batch
        return Turn(lines, seconds, cpu_s)

    def expect_each_paid_once(self) -> None:
        """Every request cost the same: the balance is short of exactly so many times it."""
        wait_until(lambda: self._balance()["held"] == "0", within_s=600)
        answer = self.product.post(PATH, self.secret, _body(0))
        cost = Decimal(answer.json()["usage"]["cost"])
        wait_until(lambda: self._spent() == (self.count + 1) * cost, within_s=600)

    def _spent(self) -> Decimal:
        return FUNDS - Decimal(self._balance()["total"])

    def _balance(self) -> dict[str, Any]:
        return self.product.command("balance", "bench")


async def _ask_all(url: str, secret: str, *, requests: int, at_once: int) -> None:
    numbers = iter(range(requests))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(_ask_in_turn(url, secret, numbers))


async def _ask_in_turn(url: str, secret: str, numbers: Iterator[int]) -> None:
    """One connection that is kept. Nothing but status and length is read, so that the client takes
    as little as it can of what gateway and upstream share with it."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    for number in numbers:
        body = json.dumps(_body(number)).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {secret}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert told.startswith(b"http/1.1 200"), told
        length = told.partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()
    await writer.wait_closed()


def _line(number: int) -> bytes:
    line = {"custom_id": f"line-{number}", "method": "POST", "url": PATH, "body": _body(number)}
    return json.dumps(line).encode() + b"\n"


def _body(number: int) -> dict[str, Any]:
    # All of one length, so that all cost the same.
    content = f"What is number {number:09}?"
    return {"model": "scripted", "messages": [{"role": "user", "content": content}]}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
