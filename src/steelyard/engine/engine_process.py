"""The engine process: listens at once, loads beside, ends on SIGTERM when its answers are done."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn
import uvloop

from steelyard.clock import SystemClock
from steelyard.engine.http_server import Serving, build_app
from steelyard.engine.model_shelf import ModelShelf
from steelyard.engine.model_source import SMOLLM2, ModelKind, ModelSource, find_model_source
from steelyard.engine.request_log import RequestLog
from steelyard.errors import Failure, SteelyardError
from steelyard.listening import listen

if TYPE_CHECKING:
    from steelyard.engine.engine import Engine, EngineStats
    from steelyard.engine.model_loading import LoadingChoices

_log = structlog.get_logger()


class EnginePackagesMissing(Failure):
    """The engine's packages are not installed; run: pip install 'steelyard[engine]'"""

    code = "engine_packages_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Everything that can be chosen about an engine process."""

    models: tuple[str, ...] = (SMOLLM2,)
    models_dir: Path = Path(".steelyard/models")
    model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8100
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_batch_size: int = 8
    max_waiting: int = 64
    max_batch_tokens: int | None = None
    memory_gb: float | None = None
    prefill_tokens_per_step: int = 256
    threads: int | None = None
    prefix_caching: bool = True
    request_log: Path | None = None
    body_bytes_max: int = 4 * 1024 * 1024
    upload_bytes_max: int = 32 * 1024 * 1024
    shutdown_grace_s: int = 30

    def __post_init__(self) -> None:
        assert 0 <= self.port <= 65535, self.port
        assert self.max_batch_size >= 1, self.max_batch_size
        assert self.max_waiting >= 0, self.max_waiting
        assert self.models, "an engine serves at least one model"
        assert self.model_name is None or len(self.models) == 1, "one name for several models"
        assert self.prefill_tokens_per_step >= 1, self.prefill_tokens_per_step
        assert self.threads is None or self.threads >= 1, self.threads
        assert self.max_model_len is None or self.max_model_len >= 2, self.max_model_len

    @property
    def memory_bytes_max(self) -> int | None:
        """What all models in memory may take together."""
        return None if self.memory_gb is None else int(self.memory_gb * 10**9)


def run_engine(options: EngineOptions) -> int:
    """Serve until told to stop; the exit status, after one clear line when something failed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        sources = [find_model_source(model) for model in options.models]
        _prepare_environment(sources)
        process = _EngineProcess(options, sources)
        process.serve()
    except SteelyardError as error:
        sys.stderr.write(f"steelyard engine: {error} [{error.code}]\n")
        return 1
    if process.is_still_loading:
        # The interpreter must not shut down below a thread that is inside torch: it would crash.
        sys.stderr.flush()
        os._exit(0)
    return 0


def _prepare_environment(sources: list[ModelSource]) -> None:
    # Read when torch is imported. Spinning OpenMP threads starve whatever shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if all(source.kind is not ModelKind.HUB for source in sources):
        # Some loaders ask the hub about a model even when all its files are here.
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Only the hub's downloads need their bars; conversion reports by log lines.
        os.environ.setdefault("TQDM_DISABLE", "1")


class _EngineProcess:
    """One listening socket, one loading thread, one engine."""

    def __init__(self, options: EngineOptions, sources: list[ModelSource]) -> None:
        self._options = options
        self._sources = sources
        log = options.request_log
        # Open before there is an engine: after a crash, what was lost can be asked for at once.
        self._serving = Serving(
            body_bytes_max=options.body_bytes_max,
            upload_bytes_max=options.upload_bytes_max,
            request_log=None if log is None else RequestLog(log, clock=SystemClock()),
        )
        self._failure: BaseException | None = None
        self._loading = threading.Thread(target=self._load, name="loading", daemon=True)
        config = uvicorn.Config(
            build_app(self._serving),
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.shutdown_grace_s,
        )
        self._server = _Server(config)

    @property
    def is_still_loading(self) -> bool:
        return self._loading.is_alive()

    def serve(self) -> None:
        """Listen until a signal, or until loading has failed."""
        self._server.take_signals()
        listener = listen(self._options.host, self._options.port, setting="--port")
        host, port = listener.getsockname()[:2]
        _log.info("engine.listening", url=f"http://{host}:{port}", models=self._options.models)
        self._loading.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._server.serve(sockets=[listener]))
        if self._serving.shelf is not None:
            self._serving.shelf.stop()
        if self._failure is not None:
            raise self._failure

    def _load(self) -> None:
        try:
            self._serving.shelf = _fill_shelf(self._options, self._sources, self._serving)
        except BaseException as error:
            self._failure = error
            self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn raises SIGTERM again after it has stopped, which would hide our exit status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def take_signals(self) -> None:
        """End on SIGTERM and SIGINT, even on one that comes before the event loop runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)


def _fill_shelf(options: EngineOptions, sources: list[ModelSource], serving: Serving) -> ModelShelf:
    _import_torch(threads=options.threads)
    shelf = ModelShelf(memory_bytes_max=options.memory_bytes_max)
    for source in sources:
        if source.kind is ModelKind.SPEECH:
            _load_speech(options, source, serving)
            continue
        if source.kind is ModelKind.DRAWING:
            _load_drawing(source, serving)
            continue
        if source.kind is ModelKind.VOICE:
            _load_voice(source, serving)
            continue
        if not _load_reader(options, source, serving):
            shelf.put(partial(_start_engine, options, source, serving))
    return shelf


def _load_speech(options: EngineOptions, source: ModelSource, serving: Serving) -> None:
    from steelyard.engine.media.speech import load_speech

    threads = options.threads or threads_by_default()
    model = load_speech(Path(source.location), name=source.name, threads=threads)
    serving.media.speech[model.name] = model
    _log.info("engine.ready", model=model.name, kind="speech")


def _load_drawing(source: ModelSource, serving: Serving) -> None:
    from steelyard.engine.media.drawing import load_drawing

    model = load_drawing(Path(source.location), name=source.name)
    serving.media.drawing[model.name] = model
    _log.info("engine.ready", model=model.name, kind="drawing")


def _load_voice(source: ModelSource, serving: Serving) -> None:
    from steelyard.engine.media.voice import load_voice

    model = load_voice(Path(source.location), name=source.name)
    serving.media.voices[model.name] = model
    _log.info("engine.ready", model=model.name, kind="voice")


def threads_by_default() -> int:
    """One for each core: with packed weights the second of two took a sixth off the time of a small
    step and half off that of a long one, for no more CPU time, on cores that others used as well."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load_reader(options: EngineOptions, source: ModelSource, serving: Serving) -> bool:
    """Load the model if it is one that reads and does not write; whether it is."""
    from steelyard.engine.encoder_loading import encoder_kind, load_encoder
    from steelyard.engine.model_loading import folder_of

    if source.kind is ModelKind.GGUF:
        return False
    folder = folder_of(source, options.models_dir, progress=_report_progress)
    kind = encoder_kind(folder)
    if kind is None:
        return False
    choices = _choices(options)
    if kind == "image classifier":
        from steelyard.engine.image_classifier import load_image_classifier

        seeing = load_image_classifier(folder, name=choices.name or source.name, choices=choices)
        serving.image_classifiers[seeing.name] = seeing
    else:
        encoder = load_encoder(folder, kind=kind, name=source.name, choices=choices)
        serving.encoders[encoder.name] = encoder
    _log.info("engine.ready", model=choices.name or source.name, kind=kind)
    return True


def _choices(options: EngineOptions) -> LoadingChoices:
    from steelyard.engine.model_loading import LoadingChoices

    return LoadingChoices(
        models_dir=options.models_dir,
        name=options.model_name,
        device=options.device,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
    )


def _start_engine(
    options: EngineOptions, source: ModelSource, serving: Serving, counts: EngineStats | None
) -> Engine:
    from steelyard.engine.engine import Engine
    from steelyard.engine.model_loading import load_model
    from steelyard.engine.warm_up import warm_up

    model = load_model(source, _choices(options), progress=_report_progress)
    engine = Engine(
        model,
        max_batch_size=options.max_batch_size,
        max_waiting=options.max_waiting,
        max_batch_tokens=options.max_batch_tokens,
        is_caching=options.prefix_caching,
        prefill_tokens_per_step=options.prefill_tokens_per_step,
        request_log=serving.request_log,
        metrics=serving.metrics,
        memory_bytes_max=options.memory_bytes_max,
        counts=counts,
    )
    engine.start()
    warm_up(engine)
    _log.info("engine.ready", model=model.name, device=str(model.device), dtype=model.dtype)
    return engine


def _import_torch(*, threads: int | None) -> None:
    try:
        import torch

        importlib.import_module("transformers")
    except ImportError as error:
        raise EnginePackagesMissing from error
    torch.set_num_threads(threads or threads_by_default())


def _report_progress(what: str) -> None:
    _log.info("engine.loading", progress=what)
