"""What gateway and metering add to the engine: tokens per second and time to first token.

Starts the whole product on the demo model and asks the same questions in turn, once of the engine
and once through the gateway, in pairs, so that a machine that gets slower slows both. The first of
a pair alternates. Keys, limits, holds, durable events and prices are on.

Run: make bench-overhead
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from tests.e2e.product import running_product

MODEL = "smollm2-135m-instruct"
console = Console(stderr=True, highlight=False)


@dataclass
class Door:
    """A way to the model, and what was measured there."""

    name: str
    url: str
    headers: dict[str, str]
    first_token_ms: list[float] = field(default_factory=list[float])
    tokens_per_s: list[float] = field(default_factory=list[float])


def main() -> None:
    options = _parse_options()
    with tempfile.TemporaryDirectory() as folder, _running(Path(folder)) as (doors, ready_s):
        console.print(f"ready in {ready_s:.1f} s; warming up")
        for door in doors:
            _stream(door, tokens=8)
        _measure_first_token(doors, pairs=options.pairs)
        _measure_throughput(
            doors, rounds=options.rounds, clients=options.clients, tokens=options.tokens
        )
    print(json.dumps(_figures(doors, ready_s, options)))


def _measure_first_token(doors: list[Door], *, pairs: int) -> None:
    for number in range(pairs):
        for door in _in_turn(doors, number):
            door.first_token_ms.append(_stream(door, tokens=2)[0])
        _report("time to first token", number, pairs, doors, "first_token_ms")


def _measure_throughput(doors: list[Door], *, rounds: int, clients: int, tokens: int) -> None:
    for number in range(rounds):
        for door in _in_turn(doors, number):
            with ThreadPoolExecutor(clients) as pool:
                started = time.perf_counter()
                streams = [pool.submit(_stream, door, tokens=tokens) for _ in range(clients)]
                counts = [stream.result()[1] for stream in streams]
                door.tokens_per_s.append(sum(counts) / (time.perf_counter() - started))
        _report("tokens per second", number, rounds, doors, "tokens_per_s")


def _in_turn(doors: list[Door], number: int) -> list[Door]:
    return doors if number % 2 else doors[::-1]


def _stream(door: Door, *, tokens: int) -> tuple[float, int]:
    """One streamed answer: milliseconds to the first token, and tokens in all."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me about scales and weights."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first_ms, count = 0.0, 0
    started = time.perf_counter()
    url = f"{door.url}/v1/chat/completions"
    with _clients[door.name].stream("POST", url, json=body, headers=door.headers) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first_ms and any(c["delta"].get("content") for c in chunk["choices"]):
                first_ms = (time.perf_counter() - started) * 1000
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
    return first_ms, count


_clients = {name: httpx.Client(timeout=300) for name in ("engine", "gateway")}


def _figures(doors: list[Door], ready_s: float, options: argparse.Namespace) -> dict[str, Any]:
    engine, gateway = doors
    added = [g - e for e, g in zip(engine.first_token_ms, gateway.first_token_ms, strict=True)]
    ratios = [g / e for e, g in zip(engine.tokens_per_s, gateway.tokens_per_s, strict=True)]
    return {
        "tokens_per_s_ratio": round(statistics.median(ratios), 4),
        "tokens_per_s_ratio_min_max": [round(min(ratios), 4), round(max(ratios), 4)],
        "ttft_added_ms_p50": round(statistics.median(added), 2),
        "ttft_added_ms_quartiles": [round(value, 2) for value in statistics.quantiles(added, n=4)],
        "engine_ttft_ms_p50": round(statistics.median(engine.first_token_ms), 1),
        "engine_ttft_ms_stdev": round(statistics.stdev(engine.first_token_ms), 1),
        "engine_tokens_per_s": round(statistics.median(engine.tokens_per_s), 1),
        "gateway_tokens_per_s": round(statistics.median(gateway.tokens_per_s), 1),
        "ready_s": round(ready_s, 1),
        "clients": options.clients,
        "pairs": options.pairs,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
    }


def _report(what: str, number: int, total: int, doors: list[Door], kind: str) -> None:
    if (number + 1) % max(1, total // 8) and number + 1 != total:
        return
    medians = ", ".join(f"{d.name} {statistics.median(getattr(d, kind)):.1f}" for d in doors)
    console.print(f"{what}: {number + 1} of {total}, medians: {medians}")


@contextmanager
def _running(folder: Path) -> Generator[tuple[list[Door], float]]:
    settings = {"STEELYARD_MODEL": "smollm2", "STEELYARD_REQUESTS_PER_MINUTE": "100000"}
    started = time.perf_counter()
    with running_product(folder, **settings) as product:
        ready_s = time.perf_counter() - started
        secret = product.tenant("bench", dollars="100")
        engine = f"http://127.0.0.1:{product.environment['STEELYARD_ENGINE_PORT']}"
        headers = {"Authorization": f"Bearer {secret}"}
        yield [Door("engine", engine, {}), Door("gateway", product.url, headers)], ready_s


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=60, help="questions for the first token")
    parser.add_argument("--rounds", type=int, default=8, help="rounds for tokens per second")
    parser.add_argument("--clients", type=int, default=4, help="clients at once in a round")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer in a round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
