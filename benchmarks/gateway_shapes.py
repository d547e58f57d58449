"""This gateway under other shapes of load: many paced streams, two processes, hours of it."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from tests.valkey_server import ValkeyServer

from benchmarks.gateway_targets import (
    GATEWAY_CORE,
    KEY_LIMITS,
    OTHER_CORE,
    Ours,
    Target,
    canned_upstream,
    our_gateway,
)

BOTH_CORES = (GATEWAY_CORE, OTHER_CORE)
STREAMS, CHUNKS = 1_000, 200
SOAK_PER_S, SOAK_STREAMS_PER_S = 200, 20
SOAK_LOOK_S = 5.0
REQUESTS_ALLOWED = 500
PAIRS = 5
Say = Callable[[str], None]


def paced_streams(folder: Path, upstream: Target, *, say: Say) -> dict[str, Any]:
    """A thousand streams at once, 20 chunks a second each, through the gateway and without it."""
    bare = upstream.ask(
        *("--mode", "paced", "--stream", "--connections", str(STREAMS)),
        seconds=CHUNKS / 20,
        model="paced",
        stream=True,
        max_tokens=CHUNKS,
    )
    with our_gateway(folder / "paced", upstream, cores=[(GATEWAY_CORE,)]) as ours:
        (target,) = ours.targets
        target.ask("--stream", "--connections", "64", seconds=2.0, stream=True)
        before_kib, before_s = target.pss_kib(), target.cpu_s()
        asking = target.start_asking(
            *("--mode", "paced", "--stream", "--connections", str(STREAMS)),
            seconds=CHUNKS / 20,
            model="paced",
            stream=True,
            max_tokens=CHUNKS,
        )
        most_kib = 0
        while asking.poll() is None:
            most_kib = max(most_kib, target.pss_kib())
            time.sleep(0.5)
        seen = target.end_asking(asking, may_refuse=True)
        spent_s = target.cpu_s() - before_s
        say(
            f"{STREAMS} paced streams: {seen['right']} whole, chunks late by "
            f"{seen['chunk_ms_p50']:.1f} ms p50, {seen['chunk_ms_p99']:.1f} p99 "
            f"(bare {bare['chunk_ms_p99']:.1f}), {(most_kib - before_kib) / STREAMS:.1f} KiB each"
        )
        if seen["right"] == STREAMS:
            ours.check_books()
    return {
        "paced_streams": STREAMS,
        "paced_streams_broken": STREAMS - seen["right"],
        "paced_chunks_dropped": STREAMS * CHUNKS - seen["chunks"],
        "paced_chunks_later_than_100_ms": seen["late"],
        "paced_late_ms_p50": round(seen["chunk_ms_p50"], 2),
        "paced_late_ms_p99": round(seen["chunk_ms_p99"], 2),
        "paced_late_ms_max": round(seen["chunk_ms_max"], 2),
        "paced_bare_late_ms_p99": round(bare["chunk_ms_p99"], 2),
        "paced_kib_per_stream": round((most_kib - before_kib) / STREAMS, 1),
        "paced_cpu_us_per_chunk": round(spent_s / (STREAMS * CHUNKS) * 1e6, 1),
    }


def two_processes(folder: Path, *, seconds: float, say: Say) -> dict[str, Any]:
    """Two gateways on two cores against one on one, in turn, limits shared in Valkey.

    The load, the upstream, Valkey and the worker share the cores: one core has the one gateway and
    all of them, two have the two and all of them. What the machine gives varies within a minute:
    each ratio is of two loads that follow each other, and what is told is the median.
    """
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        reason = "neither valkey-server nor redis-server is installed"
        say(f"two processes are skipped: {reason}")
        return {"two_process_skipped": reason}
    with _valkey(program) as valkey, canned_upstream(folder, cores=BOTH_CORES) as upstream:
        shared = {"STEELYARD_VALKEY_URL": valkey.url, "STEELYARD_VALKEY_TIMEOUT_S": "10"}
        two_cores = [(GATEWAY_CORE,), (OTHER_CORE,)]
        with (
            our_gateway(folder / "one", upstream, cores=two_cores[:1], **shared) as one,
            our_gateway(folder / "two", upstream, cores=two_cores, **shared) as two,
        ):
            beside = [*upstream.processes, valkey.running()]
            pairs = [
                (
                    _ask_all(one, beside, cores=BOTH_CORES[:1], seconds=seconds),
                    _ask_all(two, beside, cores=BOTH_CORES, seconds=seconds),
                )
                for _ in range(PAIRS)
            ]
            admitted = _ask_limited(two)
            one.check_books()
            two.check_books()
    if admitted != REQUESTS_ALLOWED:
        raise SystemExit(f"two processes admitted {admitted} of {REQUESTS_ALLOWED} together")
    walls = sorted(both[0] / alone[0] for alone, both in pairs)
    cpus = sorted(2 * alone[1] / both[1] for alone, both in pairs)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    say(f"two processes: x {wall:.2f}, with the load on their cores; x {cpu:.2f} by CPU time")
    return {
        "two_process_ratio": round(wall, 2),
        "two_process_ratio_min_max": [round(walls[0], 2), round(walls[-1], 2)],
        "two_process_cpu_ratio": round(cpu, 2),
        "two_process_cpu_ratio_min_max": [round(cpus[0], 2), round(cpus[-1], 2)],
        "two_process_requests_per_s": round(statistics.median(both[0] for _, both in pairs)),
        "one_of_two_requests_per_s": round(statistics.median(alone[0] for alone, _ in pairs)),
        "two_process_admitted_of_500": admitted,
    }


def _ask_all(
    ours: Ours, beside: Sequence[psutil.Process], *, cores: Sequence[int], seconds: float
) -> tuple[float, float]:
    """Requests a second of all at once, and milliseconds of CPU for each. The load of each gateway
    is on its own core, and whatever they share on any of theirs. Each has as many connections as
    one alone: what a turn of its loop gathers depends on them."""
    words, targets = ("--connections", "64"), ours.targets
    for process in (*beside, ours.worker, *ours.worker.children(recursive=True)):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)
    with ExitStack() as running:
        for target in targets:
            running.enter_context(target.running())
        for target, core in zip(targets, cores, strict=True):
            target.ask(*words, seconds=1.0, cores=(core,))
        before_s = sum(target.cpu_s() for target in targets)
        asking = [
            target.start_asking(*words, seconds=seconds, cores=(core,))
            for target, core in zip(targets, cores, strict=True)
        ]
        seen = [target.end_asking(one) for target, one in zip(targets, asking, strict=True)]
        spent_s = sum(target.cpu_s() for target in targets) - before_s
    return sum(one["per_s"] for one in seen), spent_s / sum(one["right"] for one in seen) * 1e3


def _ask_limited(ours: Ours) -> int:
    """How many requests both admit together of a key that may have so many a minute."""
    limit = ("--requests-per-minute", str(REQUESTS_ALLOWED), *KEY_LIMITS[2:])
    secret = ours.command("key", "create", "bench/it", "limited", *limit)["secret"]
    words = ("--mode", "open", "--rate", "200")
    before = sum(target.answers for target in ours.targets)
    for target in ours.targets:
        target.headers = {"authorization": f"Bearer {secret}"}
    with ExitStack() as running:
        for target in ours.targets:
            running.enter_context(target.running())
        # Both have read the new key.
        time.sleep(1.0)
        asking = [
            target.start_asking(*words, seconds=2.0, cores=BOTH_CORES) for target in ours.targets
        ]
        for target, one in zip(ours.targets, asking, strict=True):
            target.end_asking(one, may_refuse=True)
    return sum(target.answers for target in ours.targets) - before


@contextmanager
def _valkey(program: str) -> Generator[ValkeyServer]:
    server = ValkeyServer(program)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def soak(folder: Path, upstream: Target, *, minutes: float, say: Say) -> dict[str, Any]:
    """Steady load; whether resident memory stays what it was after the first quarter."""
    with our_gateway(
        folder / "soak", upstream, cores=[(GATEWAY_CORE,)], STEELYARD_OUTBOX_KEEP_S="60"
    ) as ours:
        (target,) = ours.targets
        seconds = minutes * 60
        whole = target.start_asking("--mode", "open", "--rate", str(SOAK_PER_S), seconds=seconds)
        words = ("--mode", "open", "--stream", "--rate", str(SOAK_STREAMS_PER_S))
        streams = target.start_asking(*words, seconds=seconds, stream=True)
        looks: list[tuple[float, float]] = []
        began = time.monotonic()
        while whole.poll() is None or streams.poll() is None:
            time.sleep(SOAK_LOOK_S)
            if time.monotonic() - began < seconds:
                looks.append((time.monotonic() - began, target.resident_kib() / 1024))
            if len(looks) % 12 == 0:
                say(f"soak: {looks[-1][0] / 60:.0f} of {minutes:.0f} min, {looks[-1][1]:.1f} MiB")
        seen = [target.end_asking(one) for one in (whole, streams)]
        ours.check_books()
    steady = looks[len(looks) // 4 :]
    slope = statistics.linear_regression(*zip(*steady, strict=True)).slope
    return {
        "soak_minutes": minutes,
        "soak_requests": sum(one["right"] for one in seen),
        "soak_asked_again": sum(one["stale"] for one in seen),
        "soak_mb_after_a_quarter": round(steady[0][1], 1),
        "soak_mb_at_the_end": round(steady[-1][1], 1),
        "soak_mb_per_hour": round(slope * 3600, 2),
    }
