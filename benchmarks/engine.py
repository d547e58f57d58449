"""The engine beside the obvious way, `transformers serve` and vLLM; with and without its cache;
and how fast tokens are counted.

All serve the same weights in float32 on the same cores. Each rival sits beside our engine: both
run, one is asked while the other is stopped (SIGSTOP), and they take turns, so that both meet the
same neighbours. A sitting is all clients streaming at once, each its questions one after the other.
Only ratios mean anything on a machine that others use; the ones by CPU time mean most.

Run: make bench-engine
"""

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from rich.console import Console

from benchmarks import counting

console = Console(stderr=True, highlight=False)
READY_WITHIN_S = 400
RIVALS = ("flask", "transformers", "vllm")
TOPICS = (
    "the sea", "a clock", "bread", "the number seven", "a bridge", "winter", "a library", "rain",
    "a mountain", "the moon", "a garden", "trains", "salt", "a lighthouse", "music", "maps",
)  # fmt: skip


@dataclass
class Figures:
    """What one server did in one sitting."""

    tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list[float])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s

    @property
    def ttft_p99_s(self) -> float:
        ordered = sorted(self.first_token_s)
        return ordered[math.ceil(0.99 * len(ordered)) - 1]


@dataclass(frozen=True)
class Server:
    """A running server, and what its requests say besides the question."""

    name: str
    url: str
    model: str
    extra: dict[str, Any]
    process: psutil.Process

    @contextmanager
    def measured(self, figures: Figures) -> Generator[None]:
        """Runs only within; what it takes of the clock and of the CPUs is added to the figures."""
        self._signal(signal.SIGCONT)
        cpu_s, began = self._cpu_s(), time.perf_counter()
        try:
            yield
        finally:
            figures.seconds += time.perf_counter() - began
            figures.cpu_s += self._cpu_s() - cpu_s
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def _cpu_s(self) -> float:
        family = [self.process, *self.process.children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in family))


def main() -> None:
    options = _parse_options()
    folder = _model_folder()
    report: dict[str, Any] = {}
    if "flask" in options.against and find_spec("flask"):
        report |= _contest(
            "flask", lambda: _flask(folder), folder, options, clients=options.clients
        )
    if "transformers" in options.against and find_spec("fastapi"):
        start = partial(_transformers_serve, folder, options)
        report |= _contest("transformers_serve", start, folder, options, clients=options.clients)
    if "vllm" in options.against and (python := os.environ.get("VLLM_PYTHON")):
        for clients in (8, 32):
            start = partial(_vllm, folder, python)
            report |= _contest(f"vllm_{clients}", start, folder, options, clients=clients)
    if not options.no_prefix:
        report |= _prefix_contest(folder, options)
    if not options.no_count:
        report |= counting.measure()
    names = ("clients", "ramp_s", "rounds", "sittings", "tokens", "threads")
    print(json.dumps(report | {name: getattr(options, name) for name in names}))


def _contest(
    name: str,
    start: Callable[[], AbstractContextManager[Server]],
    folder: Path,
    options: argparse.Namespace,
    *,
    clients: int,
) -> dict[str, Any]:
    """Turn by turn; each figure is the median of the sittings."""
    ours: list[Figures] = []
    theirs: list[Figures] = []
    with _our_engine(folder, options, clients=clients) as engine, start() as rival:
        for server, sittings in ((rival, theirs), (engine, ours)) * options.sittings:
            sittings.append(_load(server, options, clients=clients))

    def middle(sittings: list[Figures], read: str) -> float:
        return median(getattr(figures, read) for figures in sittings)

    report: dict[str, Any] = {}
    for key, read in (
        ("tokens_ratio", "tokens_per_s"),
        ("ttft_p99_ratio", "ttft_p99_s"),
        ("tokens_per_cpu_ratio", "tokens_per_cpu_s"),
    ):
        report[f"vs_{name}_{key}"] = round(middle(ours, read) / middle(theirs, read), 2)
        report[f"vs_{name}_{read}"] = [
            [round(getattr(figures, read), 2) for figures in sittings]
            for sittings in (ours, theirs)
        ]
    return report


def _prefix_contest(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    cached: list[Figures] = []
    uncached: list[Figures] = []
    clients = options.prefix_clients
    with (
        _our_engine(folder, options, clients=clients) as with_cache,
        _our_engine(folder, options, "--no-prefix-caching", clients=clients) as without,
    ):
        for number in range(options.sittings):
            cached.append(_shared_prefix(with_cache, options, sitting=number))
            uncached.append(_shared_prefix(without, options, sitting=number))
    rates = [median(f.tokens_per_s for f in sittings) for sittings in (cached, uncached)]
    return {"prefix_cache_ratio": round(rates[0] / rates[1], 2)}


def _load(server: Server, options: argparse.Namespace, *, clients: int) -> Figures:
    """All clients at once; each asks the next question when it has its answer."""
    figures = Figures()
    with server.measured(Figures()):
        _ask(server, "warm up", tokens=4, figures=Figures())

    def client(number: int) -> None:
        # Callers do not arrive in one instant; --ramp-s 0 makes them.
        time.sleep(number * options.ramp_s / clients)
        for round_number in range(options.rounds):
            topic = TOPICS[(number * 7 + round_number * 3) % len(TOPICS)]
            question = f"Client {number}, round {round_number}: write about {topic}."
            _ask(server, question, tokens=options.tokens, figures=figures)

    return _run_clients(server, client, clients, figures)


def _shared_prefix(server: Server, options: argparse.Namespace, *, sitting: int) -> Figures:
    """Prompts of which nine tenths are the same, as token ids; other ones in each sitting."""
    shared = [100 + ((sitting + i) * 37) % 20_000 for i in range(options.prefix_tokens * 9 // 10)]
    own_tokens = options.prefix_tokens - len(shared)
    figures = Figures()
    body = {"max_tokens": options.prefix_answer, "temperature": 0}

    def prompt(number: int) -> list[int]:
        return shared + [30_000 + (number * 101 + i) % 10_000 for i in range(own_tokens)]

    def client(number: int) -> None:
        for round_number in range(options.rounds):
            asked = body | {"prompt": prompt(1 + number + 100 * round_number)}
            _stream(server, "/v1/completions", asked, figures=figures)

    # With a cache, someone has always been first.
    with server.measured(Figures()):
        _stream(server, "/v1/completions", body | {"prompt": prompt(0)}, figures=Figures())
    return _run_clients(server, client, options.prefix_clients, figures)


def _run_clients(server: Server, client: Any, count: int, figures: Figures) -> Figures:
    with server.measured(figures), ThreadPoolExecutor(count) as pool:
        list(pool.map(client, range(count)))
    console.print(
        f"{server.name}, {count} clients: {figures.tokens_per_s:.1f} tokens/s, "
        f"{figures.tokens_per_cpu_s:.1f} a CPU second, first token p99 {figures.ttft_p99_s:.2f} s"
    )
    return figures


def _ask(server: Server, question: str, *, tokens: int, figures: Figures) -> None:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens}
    _stream(server, "/v1/chat/completions", body | {"temperature": 0}, figures=figures)


def _stream(server: Server, path: str, body: dict[str, Any], *, figures: Figures) -> None:
    asked = {"model": server.model, "stream": True, **body, **server.extra}
    asked["stream_options"] = {"include_usage": True}
    began, first_s, tokens = time.perf_counter(), None, 0
    with httpx.stream("POST", server.url + path, json=asked, timeout=900) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if first_s is None and _has_text(chunk):
                first_s = time.perf_counter() - began
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    assert first_s is not None, f"{server.name} gave no text"
    assert tokens > 0, f"{server.name} gave no usage"
    figures.first_token_s.append(first_s)
    figures.tokens += tokens


def _has_text(chunk: dict[str, Any]) -> bool:
    return any(
        choice.get("text") or (choice.get("delta") or {}).get("content")
        for choice in chunk.get("choices") or ()
    )


@contextmanager
def _our_engine(
    folder: Path, options: argparse.Namespace, *flags: str, clients: int
) -> Generator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "steelyard.engine", "--model", str(folder)]
    command += ["--model-name", "m", "--port", str(port), *flags]
    command += ["--max-batch-size", str(clients)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with _running("engine", command, _url(port)) as process:
        yield Server("engine", _url(port), "m", {"ignore_eos": True}, process)


@contextmanager
def _flask(folder: Path) -> Generator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.engine_flask"]
    command += ["--model", str(folder), "--port", str(port)]
    with _running("flask", command, _url(port)) as process:
        yield Server("flask", _url(port), "m", {}, process)


@contextmanager
def _transformers_serve(folder: Path, options: argparse.Namespace) -> Generator[Server]:
    port = _free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    command += ["--cb-num-blocks", "256", "--cb-max-batch-tokens", "256", "--cb-block-size", "32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    exact = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False}
    extra = {"generation_config": json.dumps(exact)}
    with _running("transformers serve", command, _url(port)) as process:
        yield Server("transformers serve", _url(port), str(folder), extra, process)


@contextmanager
def _vllm(folder: Path, python: str) -> Generator[Server]:
    port = _free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "m", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with _running("vllm", command, _url(port)) as process:
        yield Server("vllm", _url(port), "m", {"ignore_eos": True}, process)


@contextmanager
def _running(name: str, command: list[str], url: str) -> Generator[psutil.Process]:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # Threads that spin while they wait lose most when others want the cores; nobody is to lose so.
    quiet["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(name, process, url, log)
            os.killpg(process.pid, signal.SIGSTOP)
            yield psutil.Process(process.pid)
        finally:
            # Some servers outlive a polite signal, and some put their workers into other groups.
            if process.poll() is None:
                for worker in psutil.Process(process.pid).children(recursive=True):
                    worker.kill()
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"{name} ended at its start:\n{log.read()[-2000:].decode()}")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{name} was not ready in {READY_WITHIN_S} s")


def _model_folder() -> Path:
    from steelyard.engine.gguf_conversion import convert_gguf
    from steelyard.engine.model_source import find_model_source

    models = Path(os.environ.get("STEELYARD_MODELS_DIR", ".steelyard/models"))
    return convert_gguf(
        Path(find_model_source("smollm2").location), models, progress=console.print
    ).resolve()


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", nargs="*", default=RIVALS, choices=RIVALS)
    parser.add_argument("--no-prefix", action="store_true", help="leave out the prefix cache")
    parser.add_argument("--no-count", action="store_true", help="leave out how fast it counts")
    parser.add_argument("--sittings", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ramp-s", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None, help="torch threads of our engine")
    parser.add_argument("--prefix-clients", type=int, default=8)
    parser.add_argument("--prefix-tokens", type=int, default=500)
    parser.add_argument("--prefix-answer", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    main()
