"""`steelyard serve`: starts engine, gateway and worker, waits until they are ready, keeps them up.

A process that dies after it was ready is started again. One that dies before has something to say
to the operator: everything stops, and its last words are shown.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.text import Text

from steelyard.app.configuration import wants_engine
from steelyard.app.stores import prepare_folder
from steelyard.entrypoints.cli.output import console, error_console
from steelyard.listening import listen
from steelyard.settings import Settings

LOOK_AGAIN_S = 0.1
PROBE_TIMEOUT_S = 2.0
# Beyond what a gateway lets open requests take.
STOP_S = 15.0
RESTART_PAUSE_FIRST_S = 0.5
RESTART_PAUSE_MAX_S = 15.0
STEADY_S = 60.0
LAST_WORDS_LINES = 12


@dataclass(slots=True)
class Role:
    """One process of the product."""

    name: str
    health_url: str | None
    log_path: Path
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    is_ready: bool = False
    started_s: float = 0.0
    restart_at_s: float = 0.0
    restart_pause_s: float = RESTART_PAUSE_FIRST_S
    _log: IO[bytes] | None = None
    _log_begins: int = 0

    def start(self) -> None:
        if self._log is None:
            self._log = self.log_path.open("ab")
            self._log_begins = self._log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "steelyard", self.name],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self.environment,
            # A Ctrl-C goes to us alone: we stop the others in order.
            start_new_session=True,
        )
        self.started_s = time.monotonic()

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self, *, deadline_s: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of what this process and its earlier lives under us have logged."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_begins)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_WORDS_LINES:])


def run_everything(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; returns the exit status."""
    prepare_folder(settings.logs_dir)
    has_engine = wants_engine()
    listen(settings.host, settings.gateway_port, setting="STEELYARD_GATEWAY_PORT").close()
    if has_engine:
        listen(settings.engine_host, settings.engine_port, setting="STEELYARD_ENGINE_PORT").close()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    roles = _roles(settings, has_engine=has_engine)
    started_s = time.monotonic()
    for role in roles:
        role.start()
    try:
        if not _wait_until_ready(roles, stop):
            return 0 if stop.is_set() else 1
        _announce(settings, time.monotonic() - started_s)
        _keep_up(roles, stop)
    finally:
        _stop(roles, within_s=settings.drain_s + settings.drain_delay_s + STOP_S)
    console.print("stopped")
    return 0


def _roles(settings: Settings, *, has_engine: bool) -> list[Role]:
    environment = {**os.environ, **settings_as_environment(settings)}
    gateway = f"http://{settings.host}:{settings.gateway_port}/health"
    healths: dict[str, str | None] = {"gateway": gateway, "worker": None}
    if has_engine:
        healths = {"engine": f"{settings.engine_address}/health", **healths}
    if settings.event_log == "kafka":
        healths["relay"] = None
    return [
        Role(name, health, settings.logs_dir / f"{name}.log", environment)
        for name, health in healths.items()
    ]


def settings_as_environment(settings: Settings) -> dict[str, str]:
    """The settings as the variables that would give them."""
    given = settings.model_dump(exclude_none=True)
    return {f"STEELYARD_{name.upper()}": str(value) for name, value in given.items()}


def _wait_until_ready(roles: list[Role], stop: threading.Event) -> bool:
    while not stop.is_set():
        for role in roles:
            if role.has_died():
                error_console.print(Text(f"{role.name} could not start:", style="bold red"))
                error_console.print(Text(role.last_words()))
                return False
            if not role.is_ready and _answers(role):
                role.is_ready = True
                seconds = time.monotonic() - role.started_s
                console.print(Text(f"  {role.name:<8} ready in {seconds:.1f} s", style="green"))
        if all(role.is_ready for role in roles):
            return True
        stop.wait(LOOK_AGAIN_S)
    return False


def _answers(role: Role) -> bool:
    """Whether the process is at work; worker and relay are as soon as they have said so."""
    if role.health_url is None:
        return f"{role.name}.started" in role.last_words()
    try:
        with urllib.request.urlopen(role.health_url, timeout=PROBE_TIMEOUT_S) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _announce(settings: Settings, seconds: float) -> None:
    address = f"http://{settings.host}:{settings.gateway_port}"
    console.print(Text(f"ready in {seconds:.1f} s at {address}", style="bold green"))
    console.print(Text(f"  logs in {settings.logs_dir}; stop with Ctrl-C", style="dim"))


def _keep_up(roles: list[Role], stop: threading.Event) -> None:
    while not stop.wait(LOOK_AGAIN_S):
        now_s = time.monotonic()
        for role in roles:
            if not role.has_died():
                continue
            if role.restart_at_s < role.started_s:
                _plan_restart(role, now_s)
            elif now_s >= role.restart_at_s:
                role.start()


def _plan_restart(role: Role, now_s: float) -> None:
    """Restart soon, and ever later while it keeps dying."""
    if now_s - role.started_s > STEADY_S:
        role.restart_pause_s = RESTART_PAUSE_FIRST_S
    role.restart_at_s = now_s + role.restart_pause_s
    assert role.process is not None, "only a started process dies"
    error_console.print(
        f"{role.name} ended with status {role.process.returncode}; "
        f"starting it again in {role.restart_pause_s:.1f} s",
        style="yellow",
    )
    role.restart_pause_s = min(role.restart_pause_s * 2, RESTART_PAUSE_MAX_S)


def _stop(roles: list[Role], *, within_s: float) -> None:
    """The gateway first, so that open answers end; the worker last, so that it settles them."""
    by_name = {role.name: role for role in roles}
    for name in ("gateway", "engine", "relay", "worker"):
        if name not in by_name:
            continue
        by_name[name].stop()
        by_name[name].wait(deadline_s=time.monotonic() + within_s)
