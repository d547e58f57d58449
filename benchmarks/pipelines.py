"""What a pipeline adds to the sum of its stages.

A gateway and a worker as real processes, in front of an upstream that answers at once. A run of a
pipeline whose stages wait for each other, and the same requests one by one over a connection that is
kept, take turns, so that a machine that gets slower slows both; which comes first alternates.
`pipeline_overhead_ms_per_stage` is the median of the differences, divided by the stages: what one
stage costs more than the request that it is. The gateway's CPU time says what does not depend on what
else the machine does. The last line is JSON.

Run: make bench-pipelines
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

console = Console(stderr=True, highlight=False)
SCRIPT = "models: [scripted]\nanswers:\n  - words: [We, ' refund', ' you']\n"
BODY = {"model": "scripted", "max_tokens": 20}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """Milliseconds of each round, and seconds of the gateway's CPU for all of them."""

    ms: list[float] = field(default_factory=list[float])
    cpu_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(Path(folder), stages=options.stages, rounds=options.rounds)
    print(json.dumps(figures))


def _measure(folder: Path, *, stages: int, rounds: int) -> dict[str, Any]:
    pipelines = folder / "pipelines"
    pipelines.mkdir()
    (pipelines / "bench.yaml").write_text(_pipeline(stages))
    settings = {
        "STEELYARD_PIPELINES_DIR": str(pipelines),
        "STEELYARD_REQUESTS_PER_MINUTE": "10000000",
    }
    with running_scripted_product(folder, SCRIPT, **settings) as product:
        secret = product.tenant("acme", dollars="1000")
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=product.url, headers=headers, timeout=60) as client:
            return _take_turns(product, client, stages=stages, rounds=rounds)


def _take_turns(
    product: ScriptedProduct, client: httpx.Client, *, stages: int, rounds: int
) -> dict[str, Any]:
    def run() -> None:
        answer = client.post("/v1/pipelines/bench/runs", json={"input": {"text": "charged twice"}})
        told = answer.raise_for_status().json()
        assert told["status"] == "completed", told

    def one_by_one() -> None:
        said = "charged twice"
        for _ in range(stages):
            body = {**BODY, "messages": [{"role": "user", "content": said}]}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            said = answer["choices"][0]["message"]["content"]

    for _ in range(5):
        run()
        one_by_one()
    whole, parts = Measured(), Measured()
    turns: Sequence[tuple[Callable[[], None], Measured]] = [(run, whole), (one_by_one, parts)]
    pid = product.processes["gateway"].pid
    for number in range(rounds):
        for work, measured in turns if number % 2 else turns[::-1]:
            cpu_s, started = _cpu_s(pid), time.perf_counter()
            work()
            measured.ms.append((time.perf_counter() - started) * 1e3)
            measured.cpu_s += _cpu_s(pid) - cpu_s
    added = [(run_ms - sum_ms) / stages for run_ms, sum_ms in zip(whole.ms, parts.ms, strict=True)]
    per_stage = 1e3 / (rounds * stages)
    figures = {
        "pipeline_stages": stages,
        "pipeline_rounds": rounds,
        "pipeline_run_ms": round(statistics.median(whole.ms), 2),
        "pipeline_sum_of_stages_ms": round(statistics.median(parts.ms), 2),
        "pipeline_overhead_ms_per_stage": round(statistics.median(added), 3),
        "pipeline_overhead_ms_per_stage_p90": round(statistics.quantiles(added, n=10)[-1], 3),
        "pipeline_cpu_ms_per_stage": round(whole.cpu_s * per_stage, 3),
        "request_cpu_ms": round(parts.cpu_s * per_stage, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }
    for name, value in figures.items():
        console.print(f"{name:40} {value}")
    return figures


def _cpu_s(pid: int) -> float:
    """User and system time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _pipeline(stages: int) -> str:
    lines = ["schema: steelyard.pipeline/v1", "name: bench", "input: [text]", "stages:"]
    for number in range(stages):
        before = f"stage{number - 1}.choices.0.message.content" if number else "input.text"
        body = {**BODY, "messages": [{"role": "user", "content": f"${{{before}}}"}]}
        lines.append(
            f"  stage{number}: {{ endpoint: /v1/chat/completions, body: {json.dumps(body)} }}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
