"""The step loop: one thread admits, prefills, decodes and delivers, one small step at a time."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import torch
from transformers import DynamicCache

from steelyard.engine.batch import Batch, PaddedBatch, SeparateRows, can_pad
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.refusals import EngineOverloaded, EngineStepFailed, EngineStopped
from steelyard.engine.request_log import RequestLog
from steelyard.engine.sequence import Delta, End, Sequence, SequenceRequest

PREFILL_TOKENS_PER_STEP: Final = 256
_log = structlog.get_logger()


@dataclass(slots=True)
class EngineStats:
    """What the engine has done since it started, and is doing."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class _Prefill:
    sequence: Sequence
    cache: DynamicCache


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch_size: int = 8,
        max_waiting: int = 64,
        prefill_tokens_per_step: int = PREFILL_TOKENS_PER_STEP,
        request_log: RequestLog | None = None,
    ) -> None:
        assert max_batch_size >= 1, max_batch_size
        assert max_waiting >= 0, max_waiting
        self.model = model
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._prefill_tokens_per_step = prefill_tokens_per_step
        self._request_log = request_log
        self._counts = EngineStats()
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[_Prefill] = deque()
        can_share = model.can_position_rows and can_pad(model.new_cache())
        self._batch: Batch = PaddedBatch(model) if can_share else SeparateRows(model)
        self._open = 0
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

    def submit(self, request: SequenceRequest, *, deliver: Callable[[Delta], None]) -> Sequence:
        """Queue a sequence; `deliver` is called from the engine thread for each of its deltas."""
        sequence = Sequence(
            request,
            eos_token_ids=self.model.facts.eos_token_ids,
            decode=self.model.decode,
            device=self.model.device,
            deliver=deliver,
        )
        with self._wake:
            if self._is_stopping or not self.is_alive:
                raise EngineStopped
            if self._open >= self._max_batch_size + self._max_waiting:
                raise EngineOverloaded
            self._open += 1
            self._waiting.append(sequence)
            self._wake.notify()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Give up a sequence before the next step; harmless when it has already ended."""
        with self._wake:
            sequence.is_cancelled = True
            self._wake.notify()

    def stats(self) -> EngineStats:
        """The counts of this moment."""
        with self._wake:
            waiting = len(self._waiting)
            counts = self._counts
            return EngineStats(
                running=self._open - waiting,
                waiting=waiting,
                finished=counts.finished,
                cancelled=counts.cancelled,
                failed=counts.failed,
                steps=counts.steps,
                prompt_tokens=counts.prompt_tokens,
                completion_tokens=counts.completion_tokens,
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
            self._wake.wait_for(lambda: self._is_stopping or self._open > 0)
            return not self._is_stopping

    @torch.inference_mode()
    def _step(self) -> None:
        self._counts.steps += 1
        self._drop_cancelled()
        self._admit()
        self._prefill()
        self._decode()

    def _drop_cancelled(self) -> None:
        with self._wake:
            dropped = [sequence for sequence in self._waiting if sequence.is_cancelled]
            self._waiting = deque(s for s in self._waiting if not s.is_cancelled)
        dropped += [p.sequence for p in self._prefilling if p.sequence.is_cancelled]
        self._prefilling = deque(p for p in self._prefilling if not p.sequence.is_cancelled)
        dropped += [row for row in self._batch.rows if row.is_cancelled]
        self._keep_rows([i for i, row in enumerate(self._batch.rows) if not row.is_cancelled])
        for sequence in dropped:
            self._close(sequence, Delta(end=End.CANCELLED))

    def _admit(self) -> None:
        with self._wake:
            free = self._max_batch_size - len(self._prefilling) - len(self._batch.rows)
            for _ in range(min(free, len(self._waiting))):
                sequence = self._waiting.popleft()
                self._prefilling.append(_Prefill(sequence, self.model.new_cache()))

    def _prefill(self) -> None:
        # A long prompt is fed over many steps, so that the rows decoding beside it keep moving.
        budget = self._prefill_tokens_per_step
        while budget > 0 and self._prefilling:
            prefill = self._prefilling[0]
            try:
                fed, token_id = self._feed_prompt(prefill, budget)
            except Exception as error:
                self._prefilling.popleft()
                self._fail([prefill.sequence], error)
                continue
            budget -= fed
            if token_id is not None:
                self._prefilling.popleft()
                self._accept(prefill.sequence, token_id)
                self._join(prefill)

    def _feed_prompt(self, prefill: _Prefill, budget: int) -> tuple[int, int | None]:
        """How many ids were fed, and after the last of them the first id of the answer."""
        sequence, device = prefill.sequence, self.model.device
        begin = sequence.prompt_tokens_prefilled
        end = min(begin + budget, sequence.prompt_tokens)
        chunk = sequence.request.prompt_token_ids[begin:end]
        logits = self.model.next_logits(
            torch.tensor([chunk], device=device),
            cache=prefill.cache,
            position_ids=torch.arange(begin, end, device=device).unsqueeze(0),
        )
        sequence.prompt_tokens_prefilled = end
        is_last = end == sequence.prompt_tokens
        return end - begin, sequence.sampler.draw(logits[0]) if is_last else None

    def _join(self, prefill: _Prefill) -> None:
        if prefill.sequence.end is not None:
            return
        try:
            self._batch.join(prefill.sequence, prefill.cache)
        except Exception as error:
            self._lose_batch(error, [*self._batch.rows, prefill.sequence])

    def _decode(self) -> None:
        if not self._batch.rows:
            return
        rows = list(self._batch.rows)
        try:
            logits = self._batch.decode()
            token_ids = [row.sampler.draw(logits[i]) for i, row in enumerate(rows)]
        except Exception as error:
            self._lose_batch(error, rows)
            return
        for row, token_id in zip(rows, token_ids, strict=True):
            self._accept(row, token_id)
        self._keep_rows([i for i, row in enumerate(rows) if row.end is None])

    def _accept(self, sequence: Sequence, token_id: int) -> None:
        try:
            delta = sequence.accept(token_id)
        except Exception as error:
            self._fail([sequence], error)
            return
        if delta.end is None:
            self._deliver(sequence, delta)
        else:
            self._close(sequence, delta)

    def _lose_batch(self, error: Exception, sequences: list[Sequence]) -> None:
        # The shared cache may hold half a step, so nothing that is in it can go on.
        self._batch.keep([])
        self._fail(sequences, error)

    def _keep_rows(self, indices: list[int]) -> None:
        if len(indices) < len(self._batch.rows):
            self._batch.keep(indices)

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        _log.error("engine.step_failed", sequences=len(sequences), exc_info=error)
        failure = EngineStepFailed(f"the engine's step failed: {type(error).__name__}: {error}")
        for sequence in sequences:
            self._close(sequence, Delta(end=End.FAILED, failure=failure))

    def _close(self, sequence: Sequence, delta: Delta) -> None:
        assert delta.end is not None
        sequence.end = delta.end
        with self._wake:
            self._open -= 1
            if sequence.request.is_recorded:
                self._count(sequence, delta.end)
        if sequence.request.is_recorded:
            self._write_log(sequence, delta.end)
        self._deliver(sequence, delta)

    def _count(self, sequence: Sequence, end: End) -> None:
        self._counts.prompt_tokens += sequence.prompt_tokens_prefilled
        self._counts.completion_tokens += sequence.completion_tokens
        if end is End.CANCELLED:
            self._counts.cancelled += 1
        elif end is End.FAILED:
            self._counts.failed += 1
        else:
            self._counts.finished += 1

    def _write_log(self, sequence: Sequence, end: End) -> None:
        if self._request_log is None:
            return
        try:
            self._request_log.append(sequence, end=end)
        except OSError as error:
            # A full disk must not take the answers down with it.
            _log.error("engine.request_log_failed", error=str(error))

    def _deliver(self, sequence: Sequence, delta: Delta) -> None:
        try:
            sequence.deliver(delta)
        except Exception:
            # Whoever listened is gone, for one because its event loop has closed.
            sequence.is_cancelled = True

    def _close_all(self, end: End, *, failure: EngineStopped) -> None:
        with self._wake:
            left = [*self._waiting, *(p.sequence for p in self._prefilling), *self._batch.rows]
            self._waiting.clear()
        self._prefilling.clear()
        self._batch.rows = []
        for sequence in left:
            if sequence.end is None:
                self._close(sequence, Delta(end=end, failure=failure))
