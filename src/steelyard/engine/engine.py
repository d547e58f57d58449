"""The step loop: one thread that plans, computes, draws and delivers, one small step at a time."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

import structlog
import torch

from steelyard.engine.attribution import EngineTime, StepMeter, split_by_tokens
from steelyard.engine.block_pool import BLOCK_TOKENS, BlockPool
from steelyard.engine.kv_budget import bytes_per_token, count_blocks, free_memory
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.metrics import EngineMetrics
from steelyard.engine.paged_memory import PagedMemory
from steelyard.engine.refusals import EngineOverloaded, EngineStepFailed, EngineStopped
from steelyard.engine.request_log import RequestLog
from steelyard.engine.runners import PagedRunner, Runner, SeparateRunner, paged_shapes
from steelyard.engine.sampler import Draw
from steelyard.engine.scheduler import Scheduler, StepRow
from steelyard.engine.sequence import Delta, End, Sequence, SequenceRequest

PREFILL_TOKENS_PER_STEP: Final = 256
_log = structlog.get_logger()


@dataclass(slots=True)
class EngineStats:
    """What the engine has done since it started, and is doing."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    stopped: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    preemptions: int = 0
    blocks: int = 0
    blocks_held: int = 0
    engine_us: int = 0
    device_us: int = 0


def sum_stats(stats: list[EngineStats]) -> EngineStats:
    """The counts of several engines together."""
    names = [field.name for field in fields(EngineStats)]
    return EngineStats(**{name: sum(getattr(s, name) for s in stats) for name in names})


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch_size: int = 8,
        max_waiting: int = 64,
        max_batch_tokens: int | None = None,
        prefill_tokens_per_step: int = PREFILL_TOKENS_PER_STEP,
        is_caching: bool = True,
        request_log: RequestLog | None = None,
        metrics: EngineMetrics | None = None,
        memory_bytes_max: int | None = None,
        counts: EngineStats | None = None,
    ) -> None:
        assert max_batch_size >= 1, max_batch_size
        assert max_waiting >= 0, max_waiting
        self.model = model
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._request_log = request_log
        self._metrics = metrics
        # What it counted before it was last unloaded.
        self._counts = counts or EngineStats()
        shapes = paged_shapes(model)
        free_bytes = free_memory(model.device)
        if memory_bytes_max is not None:
            free_bytes = min(free_bytes, memory_bytes_max)
        token_bytes = bytes_per_token(shapes or [], model.weights_dtype)
        blocks = count_blocks(
            max_batch_tokens=max_batch_tokens,
            max_batch_size=max_batch_size,
            max_model_len=model.max_model_len,
            token_bytes=token_bytes,
            free_bytes=free_bytes,
        )
        self.memory_bytes = model.weights_bytes + blocks * BLOCK_TOKENS * token_bytes
        self.max_model_len = min(model.max_model_len, blocks * BLOCK_TOKENS)
        self._runner: Runner = SeparateRunner(model)
        if shapes is not None:
            memory = PagedMemory(
                shapes, blocks=blocks, dtype=model.weights_dtype, device=model.device
            )
            self._runner = PagedRunner(model, memory)
        self._pool = BlockPool(blocks)
        self._scheduler: Scheduler[Sequence] = Scheduler(
            self._pool,
            max_batch_size=max_batch_size,
            prefill_tokens_per_step=prefill_tokens_per_step,
            # Only blocks can be found again; a cache of its own ends with its sequence.
            is_caching=is_caching and shapes is not None,
        )
        self._meter = StepMeter(model.device)
        self._arrived: list[Sequence] = []
        self._open: set[Sequence] = set()
        self._is_stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End after the current step; what is still open is cancelled."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether sequences still make progress."""
        return self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is open."""
        with self._wake:
            return not self._open

    @property
    def device_kind(self) -> str:
        """Whose time `device_us` is: the gpu's or the cpu's."""
        return self._meter.device_kind

    def submit(self, request: SequenceRequest, *, deliver: Callable[[Delta], None]) -> Sequence:
        """Queue a sequence; `deliver` is called from the engine thread for each of its deltas."""
        return self.submit_all([request], deliver=lambda _index, delta: deliver(delta))[0]

    def submit_all(
        self, requests: list[SequenceRequest], *, deliver: Callable[[int, Delta], None]
    ) -> list[Sequence]:
        """Queue all answers of one request, or none of them."""
        sequences = [self._make(request, deliver) for request in requests]
        with self._wake:
            if self._is_stopping or not self.is_alive:
                raise EngineStopped
            room = self._max_batch_size + self._max_waiting - len(self._open)
            if len(sequences) > room:
                raise EngineOverloaded
            for sequence in sequences:
                self._log(sequence, None)
            self._open.update(sequences)
            self._arrived += sequences
            self._wake.notify()
        return sequences

    def _make(self, request: SequenceRequest, deliver: Callable[[int, Delta], None]) -> Sequence:
        return Sequence(
            request,
            eos_token_ids=self.model.facts.eos_token_ids,
            decode=self.model.decode,
            device=self.model.device,
            deliver=lambda delta: deliver(request.index, delta),
        )

    def cancel(self, sequence: Sequence) -> None:
        """Give up a sequence before the next step; harmless when it has already ended."""
        with self._wake:
            sequence.is_cancelled = True
            self._wake.notify()

    def stats(self) -> EngineStats:
        """The counts of this moment."""
        with self._wake:
            running = len(self._scheduler.running)
            return replace(
                self._counts,
                running=running,
                waiting=len(self._open) - running,
                preemptions=self._counts.preemptions + self._scheduler.preemptions,
                blocks=self._pool.blocks,
                blocks_held=self._pool.held,
            )

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except Exception:
            # Past the guards of a step only our own bugs get here; /health shows a dead thread.
            _log.exception("engine.thread_died")
        finally:
            self._is_stopping = True
            self._close_all(End.CANCELLED, failure=EngineStopped())

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._is_stopping or bool(self._open))
            return not self._is_stopping

    @torch.inference_mode()
    def _step(self) -> None:
        self._counts.steps += 1
        self._meter.begin()
        self._take_arrivals()
        self._drop_cancelled()
        rows = self._scheduler.plan()
        if not rows:
            return
        try:
            draws = self._compute(rows)
        except Exception as error:
            self._account(rows)
            # The blocks may hold half a step, so nothing that was in it can go on.
            self._fail([row.sequence for row in rows], error)
            return
        self._scheduler.advance(rows)
        drawing = [row.sequence for row in rows if row.is_drawing]
        for row in rows:
            row.sequence.note_progress()
        outcomes = [
            self._accept(sequence, draw) for sequence, draw in zip(drawing, draws, strict=True)
        ]
        self._account(rows)
        for sequence, delta in zip(drawing, outcomes, strict=True):
            self._settle(sequence, delta)

    def _take_arrivals(self) -> None:
        with self._wake:
            arrived, self._arrived = self._arrived, []
        for sequence in arrived:
            self._scheduler.arrive(sequence)

    def _drop_cancelled(self) -> None:
        cancelled = [
            sequence
            for sequence in (*self._scheduler.running, *self._scheduler.waiting)
            if sequence.is_cancelled
        ]
        for sequence in cancelled:
            self._close(sequence, Delta(end=End.CANCELLED))

    def _compute(self, rows: list[StepRow[Sequence]]) -> list[Draw]:
        """The next token of each row that draws."""
        logits = self._runner.run(rows)
        drawing = [row.sequence for row in rows if row.is_drawing]
        if not drawing:
            return []
        if all(sequence.sampler.is_plain_greedy for sequence in drawing):
            return [Draw(token_id) for token_id in logits.argmax(-1).tolist()]
        return [sequence.draw(logits[i]) for i, sequence in enumerate(drawing)]

    def _account(self, rows: list[StepRow[Sequence]]) -> None:
        """Share the step's time out by the tokens that each row fed."""
        whole = self._meter.end()
        tokens = [row.tokens for row in rows]
        engine_us = split_by_tokens(whole.engine_us, tokens)
        device_us = split_by_tokens(whole.device_us, tokens)
        for row, engine_share, device_share in zip(rows, engine_us, device_us, strict=True):
            row.sequence.time.add(EngineTime(engine_share, device_share))
        with self._wake:
            self._counts.engine_us += whole.engine_us
            self._counts.device_us += whole.device_us

    def _accept(self, sequence: Sequence, draw: Draw) -> Delta:
        try:
            return sequence.accept(draw)
        except Exception as error:
            _log.error("engine.text_failed", exc_info=error)
            return Delta(end=End.FAILED, failure=_step_failure(error))

    def _settle(self, sequence: Sequence, delta: Delta) -> None:
        if delta.end is None:
            self._deliver(sequence, delta)
        else:
            self._close(sequence, delta)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        _log.error("engine.step_failed", sequences=len(sequences), exc_info=error)
        for sequence in sequences:
            self._close(sequence, Delta(end=End.FAILED, failure=_step_failure(error)))

    def _close(self, sequence: Sequence, delta: Delta) -> None:
        assert delta.end is not None
        sequence.end = delta.end
        self._scheduler.leave(sequence)
        self._runner.forget(sequence)
        self._record(sequence, delta)

    def _record(self, sequence: Sequence, delta: Delta) -> None:
        assert delta.end is not None
        sequence.times.ended_s = time.perf_counter()
        with self._wake:
            self._open.discard(sequence)
            if sequence.request.is_recorded:
                self._count(sequence, delta.end)
        if self._metrics is not None and sequence.request.is_recorded:
            self._metrics.observe(sequence, model=self.model.name)
        # Written before it is told, so that who was answered can always be found in the log.
        self._log(sequence, delta.end)
        self._deliver(sequence, delta)

    def _log(self, sequence: Sequence, end: End | None) -> None:
        if self._request_log is None or not sequence.request.is_recorded:
            return
        try:
            if end is None:
                self._request_log.record_opened(sequence, model=self.model.name)
            else:
                self._request_log.record_ended(
                    sequence, model=self.model.name, end=end, device=self.device_kind
                )
        except OSError as error:
            # A full disk must not take the answers down with it.
            _log.error("engine.request_log_failed", error=str(error))

    def _count(self, sequence: Sequence, end: End) -> None:
        self._counts.finished += end in (End.STOP, End.LENGTH)
        self._counts.stopped += end is End.STOP
        self._counts.cancelled += end is End.CANCELLED
        self._counts.failed += end is End.FAILED
        self._counts.prompt_tokens += sequence.prompt_tokens_prefilled
        self._counts.cached_tokens += sequence.cached_tokens or 0
        self._counts.completion_tokens += sequence.completion_tokens

    def _deliver(self, sequence: Sequence, delta: Delta) -> None:
        try:
            sequence.deliver(delta)
        except Exception as error:
            # Whoever listened is gone, for one because its event loop has closed.
            if not sequence.is_cancelled:
                request_id = sequence.request.request_id
                _log.warning("engine.listener_gone", request_id=request_id, reason=repr(error))
            sequence.is_cancelled = True

    def _close_all(self, end: End, *, failure: EngineStopped) -> None:
        with self._wake:
            left = list(self._open)
        for sequence in left:
            sequence.end = end
            self._record(sequence, Delta(end=end, failure=failure))


def _step_failure(error: Exception) -> EngineStepFailed:
    return EngineStepFailed(f"the engine's step failed: {type(error).__name__}: {error}")
