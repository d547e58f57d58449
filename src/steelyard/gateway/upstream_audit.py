"""The upstream audit: a sample of attempts is counted again, off the path of the answer.

The event loop only hands a reference over. A thread of its own passes jobs to the process that
counts; when that does not keep up, jobs are dropped, and how many is recorded.
"""

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.gateway.admission import Admitted
from steelyard.gateway.prompt_counter import write_prompt
from steelyard.gateway.recounter import Recounter
from steelyard.ids import new_id
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.recount import RecountJob, RecountRecord, is_sampled
from steelyard.metering.usage import OUTPUT_TEXT
from steelyard.metering.usage_event import EndCause
from steelyard.timestamp import write_timestamp

log = structlog.get_logger()

# What is in memory because of the audit: prompts and answers that wait for their count.
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
MODELS_REFRESH_S: Final = 2.0
WHOLE: Final = frozenset({"completed", "stopped_by_limit"})


class RecountSink(Protocol):
    """Keeps what was found."""

    def append(self, records: list[RecountRecord]) -> None:
        """Raises RecountLogUnavailable."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An attempt that waits for its recount."""

    admitted: Admitted
    meter: AnswerMeter
    size: int


@dataclass(slots=True)
class AuditCounts:
    """What became of the sampled attempts since the start."""

    recounted: int = 0
    uncountable: int = 0
    dropped: int = 0


class UpstreamAudit:
    """Counts a sample of attempts again; `share` of a million, by a hash of the event's id."""

    def __init__(
        self, recounter: Recounter, sink: RecountSink, *, share: int, waiting_max: int, clock: Clock
    ) -> None:
        self.counts = AuditCounts()
        self._recounter = recounter
        self._sink = sink
        self._share = share
        self._waiting_max = waiting_max
        self._clock = clock
        self._models = recounter.models()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def takes(self, admitted: Admitted) -> bool:
        """Whether the attempt that begins is in the sample, if it ends whole."""
        is_known = admitted.model.id in self._models
        return is_known and is_sampled(admitted.hold.id, share=self._share)

    def observe(self, admitted: Admitted, meter: AnswerMeter, *, end_cause: EndCause) -> None:
        """Take an attempt of the sample that has ended whole. Never waits, never tokenizes."""
        if not meter.is_kept or end_cause not in WHOLE or meter.reported is None:
            return
        if meter.is_drained:
            return
        model = admitted.model
        waiting = _Waiting(admitted, meter, admitted.asked.size.text_bytes + meter.delivered_bytes)
        with self._changed:
            is_full = len(self._waiting) >= self._waiting_max
            if is_full or self._waiting_bytes + waiting.size > WAITING_BYTES_MAX:
                self._dropped[model.upstream, model.id] += 1
                self.counts.dropped += 1
                return
            self._waiting.append(waiting)
            self._waiting_bytes += waiting.size
            self._changed.notify()

    def close(self) -> None:
        """Let go of what waits: it is a sample, and a stopping gateway is waited for."""
        with self._changed:
            self._is_closing = True
            for waiting in self._waiting:
                self._dropped[waiting.admitted.model.upstream, waiting.admitted.model.id] += 1
            self.counts.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()
        self._recounter.close()
        self._sink.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._is_closing:
                    self._changed.wait(MODELS_REFRESH_S)
                waiting = self._waiting.popleft() if self._waiting else None
                self._waiting_bytes -= waiting.size if waiting else 0
                dropped, self._dropped = self._dropped, Counter()
                is_closing = self._is_closing
            records = [self._drop_record(*key, count) for key, count in dropped.items()]
            if waiting is not None:
                records.append(self._recount(_job(waiting)))
            elif not is_closing:
                self._models = self._recounter.models()
            self._keep(records)
            if is_closing and waiting is None:
                return

    def _recount(self, job: RecountJob) -> RecountRecord:
        try:
            record = self._recounter.recount(job)
        except Failure as failure:
            log.error("audit.counting_failed", event_id=job.id, reason=str(failure))
            record = RecountRecord(
                id=job.id,
                upstream=job.upstream,
                model=job.model,
                outcome="uncountable",
                recounted_at=write_timestamp(self._clock.now()),
                reason=failure.code,
            )
        is_counted = record.outcome == "recounted"
        self.counts.recounted += is_counted
        self.counts.uncountable += not is_counted
        log.debug("event.recounted", event_id=job.id, outcome=record.outcome, reason=record.reason)
        return record

    def _drop_record(self, upstream: str, model: str, count: int) -> RecountRecord:
        log.warning("audit.dropped", upstream=upstream, model=model, events=count)
        return RecountRecord(
            id=new_id(),
            upstream=upstream,
            model=model,
            outcome="dropped",
            recounted_at=write_timestamp(self._clock.now()),
            event_count=count,
            reason="too_busy",
        )

    def _keep(self, records: list[RecountRecord]) -> None:
        if not records:
            return
        try:
            self._sink.append(records)
        except Failure as failure:
            log.error("audit.records_lost", records=len(records), reason=str(failure))


def _job(waiting: _Waiting) -> RecountJob:
    admitted, meter = waiting.admitted, waiting.meter
    assert meter.reported is not None, "only what was reported is counted again"
    return RecountJob(
        id=admitted.hold.id,
        upstream=admitted.model.upstream,
        model=admitted.model.id,
        prompt=write_prompt(admitted.way.fields()),
        answer=meter.delivered_lines(),
        is_streamed=admitted.asked.is_streamed,
        reported_input=meter.reported.input_tokens,
        # Reasoning that nobody was shown cannot be counted again.
        reported_output=meter.reported.count(OUTPUT_TEXT),
        served_sha256=admitted.model.tokenizer.sha256 or None,
    )
