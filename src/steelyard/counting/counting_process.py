"""A process that counts again, so that neither the event loop nor the interpreter of the gateway
ever tokenizes. It reads the registry by itself, and ends when the gateway does."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import msgspec
import structlog

from steelyard.clock import SystemClock
from steelyard.counting.model_counter import ModelCounter
from steelyard.counting.pin import Registered
from steelyard.counting.recounting import recount, uncountable
from steelyard.counting.registry import TokenizerRegistry
from steelyard.errors import Failure, SteelyardError
from steelyard.metering.recount import RecountJob, RecountRecord

log = structlog.get_logger()

NICENESS = 10
# An idle process with a large vocabulary takes hundreds of megabytes; more of them are let go.
MODELS_MAX = 8


class CountingStopped(Failure):
    """The process that counts has died, or took too long; the next count starts another one."""

    code = "counting_stopped"


class CountingProcess:
    """Implements Recounter: one job at a time. Not for several threads."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._process: SpawnProcess | None = None
        # Both ends of a pipe have types of their own, which differ by operating system.
        self._connection: Any = None

    def models(self) -> frozenset[str]:
        """The models that can be counted; a damaged registration is left out and logged."""
        return frozenset(registered.model for registered in _all(self._folder))

    def recount(self, job: RecountJob) -> RecountRecord:
        """Raises CountingStopped."""
        connection = self._connection or self._start()
        try:
            connection.send_bytes(msgspec.msgpack.encode(job))
            if not connection.poll(self._timeout_s):
                raise TimeoutError(f"a count took longer than {self._timeout_s} s")
            answer = connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.close()
            raise CountingStopped(str(error) or CountingStopped.__doc__) from error
        return msgspec.msgpack.decode(answer, type=RecountRecord)

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._connection = self._process = None

    def _start(self) -> Any:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._folder), name="counting", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._connection = process, ours
        return ours


def _serve(connection: Connection, folder: Path) -> None:
    # The gateway decides when to stop; then the pipe ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    counters = _Counters(TokenizerRegistry(folder))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = msgspec.msgpack.decode(connection.recv_bytes(), type=RecountJob)
            connection.send_bytes(msgspec.msgpack.encode(_recount(job, counters)))


def _recount(job: RecountJob, counters: "_Counters") -> RecountRecord:
    at = SystemClock().now()
    try:
        return recount(job, counters.of(job.model), at=at)
    except SteelyardError as error:
        return uncountable(job, error.code, at=at)


class _Counters:
    """Opened tokenizers, opened again when another one is registered."""

    def __init__(self, registry: TokenizerRegistry) -> None:
        self._registry = registry
        self._opened: dict[str, tuple[Registered, ModelCounter]] = {}

    def of(self, model: str) -> ModelCounter:
        registered = self._registry.get(model)
        known = self._opened.get(model)
        if known is not None and known[0] == registered:
            return known[1]
        while len(self._opened) >= MODELS_MAX:
            del self._opened[next(iter(self._opened))]
        counter = ModelCounter(self._registry.open(model), clock=SystemClock())
        self._opened[model] = registered, counter
        return counter


def _all(folder: Path) -> Sequence[Registered]:
    try:
        return TokenizerRegistry(folder).all()
    except Failure as failure:
        log.warning("tokenizer_registry.unreadable", reason=str(failure))
        return ()
