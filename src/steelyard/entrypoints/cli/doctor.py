"""`steelyard doctor`: looks at the machine, and says what would keep the product from running."""

import importlib.util
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import typer
from rich.text import Text

from steelyard.app.limit_counts import check_valkey
from steelyard.app.stores import open_stores, prepare_folder
from steelyard.clock import SystemClock
from steelyard.entrypoints.cli.output import JsonFlag, console, print_json
from steelyard.errors import SteelyardError
from steelyard.listening import listen
from steelyard.settings import Settings, read_settings

Verdict = Literal["good", "note", "bad"]

PYTHON_MIN = (3, 11)
FREE_BYTES_MIN = 2 * 1024**3
EARLIEST_YEAR = 2026
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    finding: str


def register(application: typer.Typer) -> None:
    application.command("doctor", epilog="Example: `steelyard doctor`")(doctor)


def doctor(json: JsonFlag = False) -> None:
    """Check Python, torch, CUDA, disk, ports, clock, configuration, limits and books."""
    looks: list[Callable[[Settings], Finding]] = [
        _python,
        _torch,
        _model,
        _disk,
        lambda settings: _port(settings.host, settings.gateway_port, "gateway"),
        lambda settings: _port(settings.engine_host, settings.engine_port, "engine"),
        _clock,
        _limits,
        _books,
    ]
    settings = read_settings()
    findings = [Finding("configuration", "good", f"data folder {settings.data_dir}")]
    findings += [look(settings) for look in looks]
    if json:
        print_json([_document(finding) for finding in findings])
    else:
        _print(findings)
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


def _python(settings: Settings) -> Finding:
    del settings
    version = ".".join(str(part) for part in sys.version_info[:3])
    is_enough = sys.version_info >= PYTHON_MIN
    return Finding("python", "good" if is_enough else "bad", f"{version}, at least 3.11 is needed")


def _torch(settings: Settings) -> Finding:
    del settings
    if importlib.util.find_spec("torch") is None:
        advice = "not installed; the engine needs: pip install 'steelyard[engine]'"
        return Finding("torch", "note", advice)
    from steelyard.engine.torch_report import describe_torch

    return Finding("torch", "good", describe_torch())


def _model(settings: Settings) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("model", "note", "not looked for without torch")
    from steelyard.engine.model_source import find_model_source

    try:
        found = [find_model_source(model).location for model in settings.models]
    except SteelyardError as error:
        return Finding("model", "bad", str(error))
    return Finding("model", "good", f"{settings.model}: {', '.join(found)}")


def _disk(settings: Settings) -> Finding:
    try:
        prepare_folder(settings.data_dir)
    except SteelyardError as error:
        return Finding("disk", "bad", str(error))
    free = shutil.disk_usage(settings.data_dir).free
    verdict = "good" if free >= FREE_BYTES_MIN else "bad"
    return Finding("disk", verdict, f"{free / GIB:.1f} GiB free, at least 2 are needed")


def _port(host: str, port: int, name: str) -> Finding:
    try:
        listen(host, port, setting=f"STEELYARD_{name.upper()}_PORT").close()
    except SteelyardError as error:
        return Finding(f"{name} port", "note", f"{error} (fine if it is steelyard itself)")
    return Finding(f"{name} port", "good", f"{port} is free")


def _clock(settings: Settings) -> Finding:
    del settings
    now = SystemClock().now()
    before, ticks = time.monotonic(), time.get_clock_info("monotonic").resolution
    is_sane = now.year >= EARLIEST_YEAR and before > 0 and ticks < 1
    return Finding("clock", "good" if is_sane else "bad", f"{now.isoformat(timespec='seconds')}")


def _limits(settings: Settings) -> Finding:
    count = settings.gateway_count
    if settings.valkey_url is None:
        shares = f"each of {count} gateways allows its share" if count > 1 else "one gateway counts"
        return Finding("limits", "good", f"{shares}; none is counted in Valkey")
    try:
        anyio.run(check_valkey, settings)
    except SteelyardError as error:
        return Finding("limits", "bad", f"{error}; each gateway allows one in {count} of a limit")
    return Finding("limits", "good", f"Valkey answers; {count} gateways count together")


def _books(settings: Settings) -> Finding:
    try:
        stores = open_stores(settings)
        suspended, quarantined = stores.audit.waiting_counts()
        stores.database.close()
    except SteelyardError as error:
        verdict: Verdict = "note" if error.code == "books_not_ready" else "bad"
        return Finding("books", verdict, str(error))
    if suspended or quarantined:
        waiting = f"{suspended} events wait in suspense, {quarantined} records in quarantine"
        return Finding("books", "bad", f"{waiting}: steelyard suspense list, quarantine list")
    return Finding(
        "books", "good", f"ready on {socket.gethostname()}, nothing waits for a decision"
    )


def _document(finding: Finding) -> dict[str, Any]:
    return {"what": finding.what, "verdict": finding.verdict, "finding": finding.finding}


def _print(findings: list[Finding]) -> None:
    styles = {"good": "green", "note": "yellow", "bad": "bold red"}
    for finding in findings:
        console.print(
            Text.assemble(
                (f"  {finding.verdict:<5}", styles[finding.verdict]),
                (f"{finding.what:<14}", "bold"),
                finding.finding,
            )
        )
