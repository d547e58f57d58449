"""This gateway with everything on: requests, streams, added time.

Keys, limits, holds out of leases, durable events and prices are on, and after the last round every
request must be in the books at its price. The gateway has core 0; the canned upstream, the load and
our worker have core 1. Rounds go over all targets in turn; whoever is not asked is stopped
(SIGSTOP). Figures are medians of the rounds, with the least and the most beside them.

Run: make bench-gateway
     python -m benchmarks.gateway --only self --seconds 2 --rounds 1
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.gateway_targets import (
    ANSWER_PICOS,
    GATEWAY_CORE,
    OTHER_CORE,
    Ours,
    Target,
    canned_upstream,
    our_gateway,
)

console = Console(stderr=True, highlight=False)
TARGETS = ("self",)
RATE_PER_S = 100
SENTENCE = "The beam is level when what is asked and what is paid are the same. "


class Bench:
    """Rounds over the targets, and what was measured in each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.asked: dict[str, int] = defaultdict(int)

    def warm_up(self, target: Target) -> None:
        with target.running():
            self._load(target, seconds=1.0)

    def ask_bare(self, bare: Target) -> float:
        """What upstream and load can carry together on their core."""
        return self._load(bare)["per_s"]

    def run_round(self, target: Target, bare: Target) -> None:
        figures = self.figures[target.name]
        with target.running():
            self._load(target, seconds=0.5)
            before_s = target.cpu_s()
            whole = self._load(target)
            spent_s = target.cpu_s() - before_s
            figures["requests_per_s"].append(whole["per_s"])
            figures["cpu_ms_per_request"].append(spent_s / whole["right"] * 1e3)
            before_s = target.cpu_s()
            streams = self._load(target, "--stream", "--connections", "16", stream=True)
            spent_s = target.cpu_s() - before_s
            figures["streams_per_s"].append(streams["per_s"])
            figures["cpu_ms_per_stream"].append(spent_s / streams["right"] * 1e3)
            slow = self._load(target, "--mode", "open", "--rate", str(RATE_PER_S))
            figures["ms_p50"].append(slow["ms_p50"])
            figures["ms_p99"].append(slow["ms_p99"])
            figures["pss_mb"].append(target.resident_kib() / 1024)
        direct = self._load(bare, "--mode", "open", "--rate", str(RATE_PER_S))
        figures["added_ms_p50"].append(slow["ms_p50"] - direct["ms_p50"])
        figures["added_ms_p99"].append(slow["ms_p99"] - direct["ms_p99"])
        console.print(
            f"{target.name:10} {whole['per_s']:8.0f} requests/s "
            f"{figures['cpu_ms_per_request'][-1]:7.3f} ms of CPU each "
            f"{streams['per_s']:7.0f} streams/s; added {figures['added_ms_p50'][-1]:.2f} ms "
            f"p50, {figures['added_ms_p99'][-1]:.2f} p99; load {os.getloadavg()[0]:.1f}"
        )

    def _load(self, target: Target, *words: str, **fields: Any) -> dict[str, Any]:
        options = {"seconds": self._options.seconds, **fields}
        seconds = str(options.pop("seconds"))
        command = [sys.executable, "-m", "benchmarks.gateway_load", "--port", str(target.port)]
        finished = subprocess.run(
            [*command, "--seconds", seconds, *words],
            input=request(target, **options),
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, (OTHER_CORE,)),
        )
        seen = json.loads(finished.stdout)
        self.asked[target.name] += seen["right"]
        if seen["wrong"] or not seen["right"]:
            raise SystemExit(f"{target.name}: {seen['wrong']} wrong answers, {seen['right']} right")
        return seen


def request(target: Target, **fields: Any) -> bytes:
    """As it goes over the wire; its body has about 1 KB."""
    messages = [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": SENTENCE * 12},
    ]
    body = {"model": target.model, "messages": messages, "max_tokens": 100, **fields}
    content = json.dumps(body).encode()
    headers = {
        "host": f"127.0.0.1:{target.port}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **target.headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


def main() -> None:
    options = _parse_options()
    began = time.monotonic()
    bench = Bench(options)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bare = stack.enter_context(canned_upstream(folder))
        ours = stack.enter_context(our_gateway(folder / "self", bare, cores=[(GATEWAY_CORE,)]))
        console.print(f"bare upstream: {bench.ask_bare(bare):.0f} requests/s on the load's core")
        targets = [*ours.targets]
        for target in targets:
            bench.warm_up(target)
        for _ in range(options.rounds):
            for target in targets:
                bench.run_round(target, bare)
        report = _report(bench)
        report |= _check_books(ours, bench.asked["self"])
    report |= {
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "seconds": options.seconds,
        "rounds": options.rounds,
        "took_s": round(time.monotonic() - began),
        "cores": psutil.cpu_count(),
        "python": sys.version.split()[0],
    }
    print(json.dumps(report))


def _report(bench: Bench) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name, figures in bench.figures.items():
        prefix = "" if name == "self" else f"{name}_"
        for figure, rounds in figures.items():
            report[prefix + figure] = _rounded(statistics.median(rounds))
            report[f"{prefix}{figure}_min_max"] = [_rounded(min(rounds)), _rounded(max(rounds))]
    return report


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def _check_books(ours: Ours, answers: int) -> dict[str, Any]:
    """Every answer that the load got must be in the books, once, at its price."""
    expected = answers * ANSWER_PICOS
    charged = ours.charged_picos(expected)
    if charged != expected:
        raise SystemExit(f"{answers} answers cost {expected} picos, and the books say {charged}")
    console.print(f"all {answers} answers are in the books, each at its price")
    return {"answers_in_books": answers}


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=TARGETS, choices=TARGETS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
