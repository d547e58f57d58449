"""This gateway with everything on beside other gateways: requests, streams, added time.

Keys, limits, holds out of leases, durable events and prices are on, and at the end every request
must be in the books at its price. The gateway has core 0; the canned upstream, the load and our
worker have core 1. Rounds go over all targets in turn; whoever is not asked is stopped (SIGSTOP).
Figures are medians of the rounds, with the least and the most beside them.

Run: make bench-gateway                all of it, about ten minutes
     make bench-gateway SOAK=1         and 15 minutes of steady load; MINUTES=60 for an hour
     python -m benchmarks.gateway --only self --skip paced two --seconds 2
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.gateway_peers import PEERS, NotInstalled, Peer, running_peer
from benchmarks.gateway_shapes import paced_streams, soak, two_processes
from benchmarks.gateway_targets import (
    GATEWAY_CORE,
    NotReady,
    Ours,
    Target,
    WrongAnswers,
    canned_upstream,
    our_gateway,
)

console = Console(stderr=True, highlight=False, soft_wrap=True)
TARGETS = ("self", *PEERS)
SHAPES = ("paced", "two")
# A second at first: whoever compiles as it goes has compiled, and every connection is open.
WARM_UP_S = 2.0
RATIOS = ("requests_per_s", "streams_per_s", "cpu_ms_per_request")


class Bench:
    """Rounds over the targets, and what was measured in each."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self.figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.skipped: dict[str, str] = {}

    def start_peer(
        self, peer: Peer, folder: Path, bare: Target, *, stack: ExitStack
    ) -> list[Target]:
        """Running and asked once; or nothing, and why not."""
        console.print(f"{peer.name} {peer.version}: starting, and before that installing it once")
        try:
            target = stack.enter_context(running_peer(peer, folder / peer.name, bare))
            self.warm_up(target)
        except (NotInstalled, NotReady, WrongAnswers) as reason:
            self.skipped[peer.name] = str(reason)
            console.print(f"{peer.name} is skipped: {reason}")
            return []
        return [target]

    def warm_up(self, target: Target) -> None:
        with target.running():
            target.ask(seconds=WARM_UP_S)
            target.ask("--stream", "--connections", "16", seconds=WARM_UP_S, stream=True)

    def run_round(self, target: Target, bare: Target) -> None:
        figures, seconds = self.figures[target.name], max(self._seconds, target.seconds_min)
        with target.running():
            wrong_before = target.wrong_answers
            target.ask(seconds=0.5)
            before_s = target.cpu_s()
            whole = target.ask(seconds=seconds)
            figures["cpu_ms_per_request"].append((target.cpu_s() - before_s) / whole["right"] * 1e3)
            figures["requests_per_s"].append(whole["per_s"])
            before_s = target.cpu_s()
            streams = target.ask("--stream", "--connections", "16", seconds=seconds, stream=True)
            figures["cpu_ms_per_stream"].append(
                (target.cpu_s() - before_s) / streams["right"] * 1e3
            )
            figures["streams_per_s"].append(streams["per_s"])
            figures["pss_mb"].append(target.pss_kib() / 1024)
            slow = self._ask_slowly(target, per_s=target.carries_per_s)
        if target.is_rival:
            figures["wrong_answers"].append(target.wrong_answers - wrong_before)
        direct = self._ask_slowly(bare, per_s=target.carries_per_s)
        figures["added_ms_p50"].append(slow["ms_p50"] - direct["ms_p50"])
        figures["added_ms_p99"].append(slow["ms_p99"] - direct["ms_p99"])
        console.print(
            f"{target.name:10} {whole['per_s']:8.0f} requests/s "
            f"{figures['cpu_ms_per_request'][-1]:7.3f} ms of CPU each "
            f"{streams['per_s']:7.0f} streams/s, added ms {figures['added_ms_p50'][-1]:6.2f} p50 "
            f"{figures['added_ms_p99'][-1]:6.2f} p99, load {os.getloadavg()[0]:.1f}"
        )

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {}
        for name, figures in self.figures.items():
            prefix = "" if name == "self" else f"{name}_"
            for figure, rounds in figures.items():
                report[prefix + figure] = rounded(statistics.median(rounds))
                report[f"{prefix}{figure}_min_max"] = [rounded(min(rounds)), rounded(max(rounds))]
        for name in self.figures:
            if name != "self" and "self" in self.figures:
                for figure in RATIOS:
                    # One that is far too slow has ended nothing in the time.
                    if theirs := report[f"{name}_{figure}"]:
                        report[f"vs_{name}_{figure}_ratio"] = rounded(report[figure] / theirs)
        return report | {f"{name}_skipped": reason for name, reason in self.skipped.items()}

    def _ask_slowly(self, target: Target, *, per_s: int) -> dict[str, Any]:
        return target.ask("--mode", "open", "--rate", str(per_s), seconds=self._seconds)


def main() -> None:
    options = _parse_options()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, canned_upstream(Path(name)) as bare:
        folder = Path(name)
        bare_per_s = bare.ask(seconds=options.seconds)["per_s"]
        console.print(f"bare upstream: {bare_per_s:.0f} requests/s, with the load on one core")
        report["bare_requests_per_s"] = rounded(bare_per_s)
        report |= _compare(options, folder, bare)
        if "paced" in options.shapes:
            report |= paced_streams(folder, bare, say=console.print)
        if "two" in options.shapes:
            report |= two_processes(folder, seconds=options.seconds, say=console.print)
        if options.soak_minutes:
            report |= soak(folder, bare, minutes=options.soak_minutes, say=console.print)
    report |= {
        "load_average_before_after": [rounded(load_before), rounded(os.getloadavg()[0])],
        "seconds": options.seconds,
        "rounds": options.rounds,
        "took_s": round(time.monotonic() - began),
        "cores": psutil.cpu_count(),
        "python": sys.version.split()[0],
    }
    print(json.dumps(report))


def _compare(options: argparse.Namespace, folder: Path, bare: Target) -> dict[str, Any]:
    """All targets side by side, one asked at a time."""
    bench = Bench(seconds=options.seconds)
    in_books: dict[str, Any] = {}
    with ExitStack() as stack:
        targets: list[Target] = []
        ours: Ours | None = None
        if "self" in options.targets:
            started = our_gateway(folder / "self", bare, cores=[(GATEWAY_CORE,)])
            ours = stack.enter_context(started)
            targets += ours.targets
            bench.warm_up(ours.targets[0])
        for name in options.targets:
            if name in PEERS:
                targets += bench.start_peer(PEERS[name], folder, bare, stack=stack)
        for _ in range(options.rounds):
            for target in targets:
                bench.run_round(target, bare)
        if ours is not None:
            in_books["answers_in_books"] = ours.check_books()
            console.print(f"all {in_books['answers_in_books']} answers are in the books")
    return bench.report() | in_books


def rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    everything = (*TARGETS, *SHAPES)
    parser.add_argument("--only", nargs="*", default=everything, choices=everything)
    parser.add_argument("--skip", nargs="*", default=(), choices=everything)
    parser.add_argument("--soak-minutes", type=float, default=0.0)
    options = parser.parse_args()
    wanted = [name for name in everything if name in options.only and name not in options.skip]
    options.targets = [name for name in wanted if name in TARGETS]
    options.shapes = [name for name in wanted if name in SHAPES]
    return options


if __name__ == "__main__":
    main()
