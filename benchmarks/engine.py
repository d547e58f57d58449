"""The engine beside the obvious way and beside `transformers serve`, and with and without its cache.

All serve the same weights in float32 on the same cores, each with its own choice of threads, one
after the other in one run; 16 clients stream at once, each its questions one after the other. Only
ratios mean anything on a machine that others use. vLLM is compared where VLLM_PYTHON names the
interpreter of an environment that has it.

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
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

console = Console(stderr=True, highlight=False)
READY_WITHIN_S = 300
TOPICS = (
    "the sea", "a clock", "bread", "the number seven", "a bridge", "winter", "a library", "rain",
    "a mountain", "the moon", "a garden", "trains", "salt", "a lighthouse", "music", "maps",
)  # fmt: skip


@dataclass
class Figures:
    """What one server did in all its rounds."""

    tokens: int = 0
    seconds: float = 0.0
    first_token_s: list[float] = field(default_factory=list[float])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

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


def main() -> None:
    options = _parse_options()
    folder = _model_folder()
    results: dict[str, Figures] = {}
    with _our_engine(folder, options) as ours:
        results["engine"] = _load(ours, options)
    if "flask" not in options.skip and find_spec("flask"):
        with _flask(folder) as flask:
            results["flask"] = _load(flask, options)
    if "transformers" not in options.skip and find_spec("fastapi"):
        with _transformers_serve(folder, options) as theirs:
            results["transformers_serve"] = _load(theirs, options)
    if python := os.environ.get("VLLM_PYTHON"):
        with _vllm(folder, python) as vllm:
            results["vllm"] = _load(vllm, options)
    # Once more at the end, so that a machine that has become busier meanwhile shows.
    with _our_engine(folder, options) as ours:
        results["engine_again"] = _load(ours, options)
    for name, cached in (("prefix_cached", True), ("prefix_uncached", False)):
        flags = [] if cached else ["--no-prefix-caching"]
        with _our_engine(folder, options, *flags) as ours:
            results[name] = _shared_prefix(ours, options)
    print(json.dumps(_report(results, options)))


def _report(results: dict[str, Figures], options: argparse.Namespace) -> dict[str, Any]:
    """The ratios, against the mean of our two sittings."""
    ours = Figures(
        results["engine"].tokens + results["engine_again"].tokens,
        results["engine"].seconds + results["engine_again"].seconds,
        results["engine"].first_token_s + results["engine_again"].first_token_s,
    )

    def ratio(name: str, read: str) -> float | None:
        found = results.get(name)
        return None if found is None else round(getattr(ours, read) / getattr(found, read), 2)

    cached, uncached = results["prefix_cached"], results["prefix_uncached"]
    return {
        "vs_flask_tokens_ratio": ratio("flask", "tokens_per_s"),
        "vs_flask_ttft_p99_ratio": ratio("flask", "ttft_p99_s"),
        "vs_transformers_serve_tokens_ratio": ratio("transformers_serve", "tokens_per_s"),
        "vs_transformers_serve_ttft_p99_ratio": ratio("transformers_serve", "ttft_p99_s"),
        "vs_vllm_tokens_ratio": ratio("vllm", "tokens_per_s"),
        "prefix_cache_ratio": round(cached.tokens_per_s / uncached.tokens_per_s, 2),
        "clients": options.clients,
        "ramp_s": options.ramp_s,
        "tokens_per_answer": options.tokens,
        "tokens_per_s": {name: round(found.tokens_per_s, 1) for name, found in results.items()},
        "ttft_p99_s": {name: round(found.ttft_p99_s, 2) for name, found in results.items()},
    }


def _load(server: Server, options: argparse.Namespace) -> Figures:
    """All clients at once; each asks the next question when it has its answer."""
    _ask(server, "warm up", tokens=4, figures=Figures())
    figures = Figures()

    def client(number: int) -> None:
        # Callers do not arrive in one instant; --ramp-s 0 makes them.
        time.sleep(number * options.ramp_s / options.clients)
        for round_number in range(options.rounds):
            topic = TOPICS[(number * 7 + round_number * 3) % len(TOPICS)]
            question = f"Client {number}, round {round_number}: write about {topic}."
            _ask(server, question, tokens=options.tokens, figures=figures)

    return _run_clients(server.name, client, options.clients, figures)


def _shared_prefix(server: Server, options: argparse.Namespace) -> Figures:
    """Prompts of which nine tenths are the same, as token ids."""
    shared = [100 + (i * 37) % 20_000 for i in range(options.prefix_tokens * 9 // 10)]
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
    _stream(server, "/v1/completions", body | {"prompt": prompt(0)}, figures=Figures())
    return _run_clients(f"{server.name}, shared beginning", client, options.prefix_clients, figures)


def _run_clients(name: str, client: Any, count: int, figures: Figures) -> Figures:
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(client, range(count)))
    figures.seconds = time.perf_counter() - began
    console.print(
        f"{name}: {figures.tokens_per_s:.1f} tokens/s, first token p99 {figures.ttft_p99_s:.2f} s"
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
def _our_engine(folder: Path, options: argparse.Namespace, *flags: str) -> Generator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "steelyard.engine", "--model", str(folder)]
    command += ["--model-name", "m", "--port", str(port), *flags]
    command += ["--max-batch-size", str(options.clients)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with _running("engine", command, f"http://127.0.0.1:{port}") as url:
        yield Server("engine", url, "m", {"ignore_eos": True})


@contextmanager
def _flask(folder: Path) -> Generator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.engine_flask"]
    command += ["--model", str(folder), "--port", str(port)]
    with _running("flask", command, f"http://127.0.0.1:{port}") as url:
        yield Server("flask", url, "m", {})


@contextmanager
def _transformers_serve(folder: Path, options: argparse.Namespace) -> Generator[Server]:
    port = _free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--continuous-batching", "--device", "cpu", "--dtype", "float32"]
    command += ["--cb-num-blocks", "256", "--cb-max-batch-tokens", "256", "--cb-block-size", "32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    exact = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False}
    extra = {"generation_config": json.dumps(exact)}
    with _running("transformers serve", command, f"http://127.0.0.1:{port}") as url:
        yield Server("transformers serve", url, str(folder), extra)


@contextmanager
def _vllm(folder: Path, python: str) -> Generator[Server]:
    port = _free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "m", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with _running("vllm", command, f"http://127.0.0.1:{port}") as url:
        yield Server("vllm", url, "m", {"ignore_eos": True})


@contextmanager
def _running(name: str, command: list[str], url: str) -> Generator[str]:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(name, process, url, log)
            yield url
        finally:
            # Some servers outlive a polite signal.
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


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--skip", nargs="*", default=[], choices=["flask", "transformers"])
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
