"""A real engine process on a free port, and waiting with a deadline."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

READY_WITHIN_S = 240.0
_URL = re.compile(r"url=(http://\S+)")


@dataclass
class EngineProcess:
    popen: subprocess.Popen[str]
    url: str
    stderr: list[str]
    request_log: Path | None

    def stats(self) -> dict[str, int]:
        return httpx.get(f"{self.url}/stats").json()

    def logged(self, request_id: str) -> dict[str, Any]:
        assert self.request_log is not None
        lines = [json.loads(line) for line in self.request_log.read_text().splitlines()]
        return next(
            line for line in lines if line["request_id"] == request_id and line["event"] == "ended"
        )

    def wait_until_idle(self) -> None:
        wait_until(lambda: self.stats()["running"] + self.stats()["waiting"] == 0)


def wait_until(claim: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@contextmanager
def start_engine_process(*flags: str, wait: bool = True) -> Generator[EngineProcess]:
    command = [sys.executable, "-m", "steelyard.engine", "--port", "0", *flags]
    popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    lines: list[str] = []
    reader = Thread(target=_collect, args=(popen, lines), daemon=True)
    reader.start()
    try:
        process = EngineProcess(popen, _wait_for_url(popen, lines), lines, _log_of(flags))
        if wait:
            wait_until(lambda: _is_ready(process), within_s=READY_WITHIN_S)
        yield process
    finally:
        popen.terminate()
        popen.wait(timeout=60)
        reader.join(timeout=10)
        assert popen.stderr is not None
        popen.stderr.close()


def run_engine_process(*flags: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "steelyard.engine", "--port", "0", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return finished.returncode, finished.stderr.splitlines()


def _collect(popen: subprocess.Popen[str], lines: list[str]) -> None:
    assert popen.stderr is not None
    for line in iter(popen.stderr.readline, ""):
        lines.append(line)


def _wait_for_url(popen: subprocess.Popen[str], lines: list[str]) -> str:
    wait_until(lambda: bool(_URL.search("".join(lines))) or popen.poll() is not None)
    found = _URL.search("".join(lines))
    assert found is not None, lines
    return found.group(1)


def _is_ready(process: EngineProcess) -> bool:
    assert process.popen.poll() is None, process.stderr
    return httpx.get(f"{process.url}/health").status_code == 200


def _log_of(flags: tuple[str, ...]) -> Path | None:
    if "--request-log" not in flags:
        return None
    return Path(flags[flags.index("--request-log") + 1])
