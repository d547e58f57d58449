"""Brings what gateways recounted into the books, and says aloud when an upstream drifts."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from steelyard.clock import Clock
from steelyard.eventlog.recount_log import (
    RecountLogReader,
    RecountLogUnavailable,
    find_recount_logs,
)
from steelyard.storage.recount_store import SideSums, SqlRecountStore, UpstreamDrift

log = structlog.get_logger()

RECORDS_AT_ONCE: Final = 1_000
EVERY: Final = timedelta(seconds=1)
# How old what is told of the last day may be while nothing new comes.
DRIFTS_EVERY: Final = timedelta(minutes=1)
WINDOW: Final = timedelta(days=1)
# Fewer events say little: one odd answer would be an alert.
EVENTS_MIN: Final = 20


class RecountCollector:
    """Follows every recount log of a folder. `drift_ppm_max` is what is put up with."""

    def __init__(
        self, store: SqlRecountStore, folder: Path, *, drift_ppm_max: int, clock: Clock
    ) -> None:
        self._store = store
        self._folder = folder
        self._drift_ppm_max = drift_ppm_max
        self._clock = clock
        self._readers: dict[Path, RecountLogReader] = {}
        self._looked_at: datetime | None = None
        self.drifts: Sequence[UpstreamDrift] = ()
        self._drifts_of: datetime | None = None
        self._alerted: dict[tuple[str, str, str], datetime] = {}

    def collect_if_due(self) -> None:
        """Look now and then: nobody waits for it. Raises BooksUnavailable."""
        now = self._clock.now()
        if self._looked_at is None or now - self._looked_at >= EVERY:
            self._looked_at = now
            self.collect()

    def collect(self) -> int:
        """Bring in what is there now; raises BooksUnavailable. Returns how many were new."""
        for path in find_recount_logs(self._folder):
            if path not in self._readers:
                try:
                    self._readers[path] = RecountLogReader(path)
                except RecountLogUnavailable as failure:
                    log.debug("recount_log.not_ready", path=str(path), reason=str(failure))
        fresh = sum(self._collect_from(path) for path in list(self._readers))
        now = self._clock.now()
        if fresh or self._drifts_of is None or now - self._drifts_of >= DRIFTS_EVERY:
            self._drifts_of = now
            self.drifts = self._store.drifts(start=now - WINDOW, end=now + timedelta(seconds=1))
            self._alert(now)
        return fresh

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _collect_from(self, path: Path) -> int:
        reader, fresh = self._readers[path], 0
        position = self._store.position(reader.log_id)
        try:
            while records := reader.read_after(position, limit=RECORDS_AT_ONCE):
                fresh += self._store.collect(reader.log_id, records)
                position = records[-1][0]
        except RecountLogUnavailable as failure:
            log.warning("recount_log.unreadable", path=str(path), reason=str(failure))
            self._readers.pop(path).close()
        return fresh

    def exceeds(self, sums: SideSums) -> bool:
        """Whether a side of what is told drifts further than is put up with."""
        return exceeds(sums, drift_ppm_max=self._drift_ppm_max)

    def _alert(self, now: datetime) -> None:
        """Once a day for each side of each model that drifts further than is put up with."""
        for drift in self.drifts:
            for side, sums in (("input", drift.input), ("output", drift.output)):
                key = (drift.upstream, drift.model, side)
                is_quiet = key in self._alerted and now - self._alerted[key] < WINDOW
                if self.exceeds(sums) and not is_quiet:
                    self._alerted[key] = now
                    _say(drift, side, sums)


def exceeds(sums: SideSums, *, drift_ppm_max: int) -> bool:
    """Whether a side drifts further than is put up with, over enough events to say so."""
    return sums.events >= EVENTS_MIN and abs(sums.drift_ppm) > drift_ppm_max


def _say(drift: UpstreamDrift, side: str, sums: SideSums) -> None:
    log.error(
        "audit.drift_exceeded",
        upstream=drift.upstream,
        model=drift.model,
        side=side,
        events=sums.events,
        reported_tokens=sums.reported,
        recounted_tokens=sums.recounted,
        drift_ppm=sums.drift_ppm,
    )
