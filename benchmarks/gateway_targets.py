"""What the gateway's benchmark asks: the bare upstream, this gateway, and processes in general.

Everything that is measured runs on core 0, everything else on core 1.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.e2e.product import picos, product_environment, run_command
from tests.postgres_server import free_port

from benchmarks.gateway_upstream import COMPLETION_TOKENS, PROMPT_TOKENS
from benchmarks.worker import BOOK

GATEWAY_CORE, OTHER_CORE = 0, 1
READY_WITHIN_S = 240.0
STOP_WITHIN_S = 60.0
# The worker settles a batch in far less.
SETTLED_WITHIN_S = 4.0
PATH = "/v1/chat/completions"
SENTENCE = "The beam is level when what is asked and what is paid are the same. "
CREDIT = 1_000_000
# What every answer of the canned upstream costs.
ANSWER_PICOS = PROMPT_TOKENS * 2_000_000 + COMPLETION_TOKENS * 10_000_000
CONFIGURATION = """
[upstreams.canned]
kind = "openai-compatible"
url = "{url}/v1"

[models.canned]
deployments = [{{ upstream = "canned" }}]
context_tokens = 8192

[models.paced]
deployments = [{{ upstream = "canned" }}]
context_tokens = 8192
"""
# Far above what is asked: they are counted for each request, and refuse none.
PLACE_LIMITS = ("--requests-per-minute", "100000000", "--tokens-per-minute", "2000000000")
KEY_LIMITS = (*PLACE_LIMITS, "--requests-at-once", "100000")


class NotReady(Exception):
    """It ended, or took too long, at its start."""


class WrongAnswers(Exception):
    """What the load got were not all whole answers with status 200."""


@dataclass
class Target:
    """Something that answers chat, and the processes that do."""

    name: str
    port: int
    processes: list[psutil.Process]
    headers: dict[str, str] = field(default_factory=dict[str, str])
    model: str = "canned"
    path: str = PATH
    # What added time is measured at.
    carries_per_s: int = 100
    # One that is slow needs longer, or nothing of it ends within the time.
    seconds_min: float = 0.0
    # Wrong answers of another gateway are counted; of ours they end the run.
    is_rival: bool = False
    answers: int = 0
    wrong_answers: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        *words: str,
        seconds: float,
        cores: Collection[int] = (OTHER_CORE,),
        may_refuse: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """Run the load with these words; the fields go into the body."""
        asking = self.start_asking(*words, seconds=seconds, cores=cores, **fields)
        return self.end_asking(asking, may_refuse=may_refuse)

    def start_asking(
        self, *words: str, seconds: float, cores: Collection[int] = (OTHER_CORE,), **fields: Any
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "benchmarks.gateway_load", "--port", str(self.port)]
        asking = subprocess.Popen(
            [*command, "--seconds", str(seconds), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: run_first(cores),
        )
        assert asking.stdin
        asking.stdin.write(self._request(**fields))
        asking.stdin.close()
        return asking

    def end_asking(
        self, asking: "subprocess.Popen[bytes]", *, may_refuse: bool = False
    ) -> dict[str, Any]:
        assert asking.stdout
        with asking.stdout:
            said = asking.stdout.read()
        if asking.wait():
            raise WrongAnswers("the load ended with an error")
        seen = json.loads(said)
        self.answers += seen["right"]
        self.wrong_answers += seen["wrong"]
        may_refuse = may_refuse or self.is_rival
        if (seen["wrong"] and not may_refuse) or not seen["right"]:
            raise WrongAnswers(
                f"{seen['wrong']} wrong answers {seen['faults']}, {seen['right']} right ones"
            )
        return seen

    def _request(self, **fields: Any) -> bytes:
        """As it goes over the wire; its body has about 1 KB."""
        messages = [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": SENTENCE * 12},
        ]
        body = {"model": self.model, "messages": messages, "max_tokens": 100, **fields}
        content = json.dumps(body).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "content-length": str(len(content)),
            **self.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{each}: {headers[each]}" for each in headers)]
        return "\r\n".join([*lines, "", ""]).encode() + content

    def cpu_s(self) -> float:
        """Of all its processes and all that they started."""
        times = [one.cpu_times() for one in self._family()]
        return sum(each.user + each.system for each in times)

    def pss_kib(self) -> int:
        """Memory of all its processes, shared pages in part, as the kernel says."""
        return self._memory_kib("Pss")

    def resident_kib(self) -> int:
        return self._memory_kib("Rss")

    @contextmanager
    def running(self) -> Generator[None]:
        """Stopped before and afterwards, so that whatever is measured is alone on its core."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        for one in self._family():
            one.send_signal(number)

    def _memory_kib(self, kind: str) -> int:
        return sum(_memory_kib(one.pid, kind) for one in self._family())

    def _family(self) -> list[psutil.Process]:
        return [one for each in self.processes for one in (each, *each.children(recursive=True))]


def _memory_kib(pid: int, kind: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise AssertionError(f"{pid} has no {kind}")


@contextmanager
def started(
    command: list[str],
    *,
    cores: Collection[int],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    is_first: bool = False,
) -> Generator[psutil.Process]:
    """A process of its own session on these cores; it and its children end with the context. One
    that is first does not wait for its turn there."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: run_first(cores) if is_first else os.sched_setaffinity(0, cores),
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        end(process)


def run_first(cores: Collection[int]) -> None:
    """Run on these cores, before whatever is ordinary there, where the system allows it; beside a
    gateway that is measured, in turns with it.

    What measures must not wait for what it does not measure: on a core that they share, the kernel
    may let a worker that computes go on for a whole tick, 4 ms, before it lets the load see that its
    answer has come.
    """
    os.sched_setaffinity(0, cores)
    if GATEWAY_CORE not in cores:
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (psutil.Process(process.pid), *children):
            one.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in children:
            if one.is_running():
                one.kill()
    process.wait()


def wait_until_it_answers(url: str, process: psutil.Process, log: Path) -> None:
    """Any answer will do but one that says that it is not ready."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            break
        try:
            if httpx.get(url, timeout=5).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise NotReady(f"did not answer at {url}: {log.read_text(errors='replace')[-600:]}")


@contextmanager
def canned_upstream(folder: Path, *, cores: Collection[int] = (OTHER_CORE,)) -> Generator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_upstream", "--port", str(port)]
    log = folder / "upstream.log"
    with started(command, cores=cores, log=log, is_first=True) as process:
        wait_until_it_answers(f"http://127.0.0.1:{port}/v1/models", process, log)
        yield Target("bare", port, [process])


@dataclass
class Ours:
    """This gateway with everything on, as one process or several, and its books."""

    environment: dict[str, str]
    targets: list[Target] = field(default_factory=list[Target])
    worker: psutil.Process = field(init=False)

    def check_books(self) -> int:
        """Every answer that the load got must be in the books, once, at its price."""
        answers = sum(target.answers for target in self.targets)
        expected = answers * ANSWER_PICOS
        charged = self._charged_picos(expected)
        if charged != expected:
            raise SystemExit(f"{answers} answers cost {expected}, and the books say {charged}")
        return answers

    def _charged_picos(self, expected: int) -> int:
        """What all events that are in the books cost, once it is what is expected or stays so."""
        spent, before = self._spent_picos(), -1
        while spent not in (expected, before):
            time.sleep(SETTLED_WITHIN_S)
            spent, before = self._spent_picos(), spent
        return spent

    def command(self, *words: str) -> Any:
        finished = run_command(*words, environment=self.environment)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return json.loads(finished.stdout)

    def _spent_picos(self) -> int:
        return CREDIT * 10**12 - picos(self.command("balance", "bench")["total"])


@contextmanager
def our_gateway(
    folder: Path, upstream: Target, *, cores: Sequence[Collection[int]], **settings: str
) -> Generator[Ours]:
    """A process for each set of cores. The worker, which settles beside it, is with the load."""
    folder.mkdir()
    configuration = folder / "steelyard.toml"
    configuration.write_text(CONFIGURATION.format(url=upstream.url))
    environment = product_environment(
        folder / "data",
        STEELYARD_CONFIG=str(configuration),
        STEELYARD_GATEWAY_COUNT=str(len(cores)),
        **settings,
    )
    ours = Ours(environment)
    secret = _prepare_books(ours, folder)
    with ExitStack() as stack:

        def start(role: str, *words: str, on: Collection[int]) -> tuple[psutil.Process, Path]:
            log = folder / f"{role}.log"
            command = [sys.executable, "-m", "steelyard", *words]
            running = started(command, cores=on, log=log, environment=environment)
            return stack.enter_context(running), log

        ours.worker, _ = start("worker", "worker", on=(OTHER_CORE,))
        for number, on in enumerate(cores, start=1):
            name, port = f"gateway-{number}", free_port()
            process, log = start(name, "gateway", "--name", name, "--port", str(port), on=on)
            wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
            headers = {"authorization": f"Bearer {secret}"}
            ours.targets.append(Target("self", port, [process], headers))
        yield ours


def _prepare_books(ours: Ours, folder: Path) -> str:
    """Prices, an organisation with money and limits, and a key, whose secret it returns."""
    book = folder / "prices.yaml"
    book.write_text(BOOK)
    ours.command("init")
    ours.command("price", "publish", str(book))
    ours.command("org", "create", "bench")
    ours.command("department", "create", "bench/it")
    ours.command("limit", "set", "bench", *PLACE_LIMITS)
    ours.command("credit", "add", "bench", str(CREDIT))
    return ours.command("key", "create", "bench/it", "key", *KEY_LIMITS)["secret"]
