"""The worker's process: follows the outboxes and brings their events into the books."""

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from steelyard.app.stores import Stores, open_stores
from steelyard.billing.books import PositionMoved
from steelyard.billing.settlement import settle_batch
from steelyard.entrypoints.logs import configure_logs
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogReader, EventLogUnavailable
from steelyard.eventlog.outbox import OutboxReader, find_outboxes
from steelyard.settings import Settings

log = structlog.get_logger()

FAILURE_PAUSE_S = 1.0


def run_worker(settings: Settings) -> None:
    """Settle until told to stop; what is half done when the process dies is done by the next."""
    configure_logs("worker")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    worker = Worker(open_stores(settings), settings.outbox_dir, batch_max=settings.worker_batch_max)
    log.info("worker.started")
    while not stop.is_set():
        try:
            is_idle = worker.work() == 0
        except Failure as failure:
            log.error("worker.paused", code=failure.code, reason=str(failure))
            stop.wait(FAILURE_PAUSE_S)
            continue
        if is_idle:
            stop.wait(settings.worker_poll_s)
    log.info("worker.stopped")


class Worker:
    """Follows every outbox of a folder from the position that the books remember."""

    def __init__(self, stores: Stores, outbox_dir: Path, *, batch_max: int) -> None:
        self._stores = stores
        self._outbox_dir = outbox_dir
        self._batch_max = batch_max
        self._readers: dict[Path, EventLogReader] = {}
        self._unreadable: set[Path] = set()
        self._positions: dict[str, int] = {}
        self._prices: Mapping[str, Mapping[str, Any]] = {}

    def work(self) -> int:
        """Settle what is there now, one batch of each outbox; returns how many records it read."""
        for path in find_outboxes(self._outbox_dir):
            if path not in self._readers:
                self._open(path)
        return sum(self._settle_next(reader) for reader in self._readers.values())

    def _open(self, path: Path) -> None:
        """Follow an outbox; one that its gateway is still making is tried again at the next look."""
        try:
            self._readers[path] = OutboxReader(path)
        except EventLogUnavailable as failure:
            if path not in self._unreadable:
                log.warning("worker.outbox_unreadable", path=str(path), reason=str(failure))
            self._unreadable.add(path)
        else:
            self._unreadable.discard(path)

    def _settle_next(self, reader: EventLogReader) -> int:
        position = self._position(reader.log_id)
        records = reader.read_after(position, limit=self._batch_max)
        if not records:
            return 0
        # A price book is published before any event can name it: reading now misses none.
        if len(self._prices) != self._stores.audit.price_count():
            self._prices = self._stores.audit.price_documents()
        try:
            with self._stores.books.write() as unit:
                counts = settle_batch(
                    records,
                    unit,
                    log_id=reader.log_id,
                    prices=self._prices,
                    at=self._stores.clock.now(),
                )
        except PositionMoved as moved:
            log.warning("worker.position_moved", reason=str(moved))
            del self._positions[reader.log_id]
            return len(records)
        self._positions[reader.log_id] = records[-1].position
        log.info("events.settled", log_id=reader.log_id, read=len(records), **counts)
        return len(records)

    def _position(self, log_id: str) -> int:
        if log_id not in self._positions:
            with self._stores.books.write() as unit:
                self._positions[log_id] = unit.position(log_id)
        return self._positions[log_id]
