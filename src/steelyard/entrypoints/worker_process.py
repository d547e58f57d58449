"""The worker's process: follows the outboxes and brings their events into the books."""

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from steelyard.app.event_log import open_event_logs
from steelyard.app.stores import Stores, open_stores
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.books import PositionMoved
from steelyard.billing.event_preparation import PreparedBatch
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.open_holds import mark_old_holds
from steelyard.billing.reconciliation import Reconciliation
from steelyard.billing.settlement import settle_batch
from steelyard.collection import collection_paused
from steelyard.entrypoints.logs import configure_logs
from steelyard.entrypoints.metrics_server import metrics_served
from steelyard.entrypoints.patience import start_patiently
from steelyard.entrypoints.preparation_process import (
    PreparationProcess,
    PreparationStopped,
    Wanted,
    prepare_next,
    prepare_wanted,
)
from steelyard.entrypoints.recount_collector import RecountCollector
from steelyard.entrypoints.worker_metrics import LogStanding, WorkerMetrics
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogReader, EventLogs, EventLogUnavailable
from steelyard.eventlog.outbox_folder import OutboxFolder
from steelyard.eventlog.outbox_reader import OutboxReader
from steelyard.pricing.price_book import CanonicalDocument
from steelyard.settings import Settings
from steelyard.storage.reconciliation import SqlReconciliation
from steelyard.storage.recount_store import SqlRecountStore

log = structlog.get_logger()

# With fewer it has caught up, and lets some gather (ADR 0075).
GATHERED_MIN = 1_000
FAILURE_PAUSE_S = 1.0
BATCHES_IN_A_ROW = 20
# A batch of so many records is a backlog: worth a second process.
BACKLOG_MIN = 2_000
DEEP_EVERY_S = 60.0
DEEP_SHARE = 20
LAGS_EVERY_S = 1.0


def run_worker(settings: Settings) -> None:
    """Settle until told to stop; what is half done when the process dies is done by the next."""
    configure_logs("worker")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    stores = start_patiently(lambda: open_stores(settings), patience_s=settings.books_patience_s)
    logs = open_event_logs(settings, stores)
    metrics = WorkerMetrics()
    worker = Worker(stores, logs, batch_max=settings.worker_batch_max, metrics=metrics)
    reconciling = Reconciling(stores, metrics, every_s=settings.reconcile_s)
    recounts = RecountCollector(
        SqlRecountStore(stores.database),
        settings.outbox_dir,
        drift_ppm_max=settings.audit_drift_ppm_max,
        clock=stores.clock,
    )
    metrics.audited = recounts
    sweep = Sweep(stores, every_s=settings.sweep_s, hold_ttl_s=settings.hold_ttl_s)
    log.info("worker.started")
    serving = metrics_served(
        metrics.expose,
        host=settings.metrics_host,
        port=settings.worker_metrics_port,
        setting="STEELYARD_WORKER_METRICS_PORT",
    )
    gathered_min = min(GATHERED_MIN, settings.worker_batch_max)
    with closing(worker), closing(recounts), serving:
        while not stop.is_set():
            try:
                has_caught_up = worker.work() < gathered_min
                sweep.run_if_due()
                recounts.collect_if_due()
                reconciling.run_if_due()
            except Failure as failure:
                log.error("worker.paused", code=failure.code, reason=str(failure))
                stop.wait(FAILURE_PAUSE_S)
                continue
            if has_caught_up:
                stop.wait(settings.worker_poll_s)
    log.info("worker.stopped")


class Sweep:
    """What nobody asks for and has to happen: grants expire, forgotten holds come to light."""

    def __init__(self, stores: Stores, *, every_s: float, hold_ttl_s: float) -> None:
        self._stores = stores
        self._every = timedelta(seconds=every_s)
        self._hold_ttl = timedelta(seconds=hold_ttl_s)
        self._due: datetime | None = None

    def run_if_due(self) -> None:
        """Raises BooksUnavailable; the next look tries again."""
        now = self._stores.clock.now()
        if self._due is not None and now < self._due:
            return
        expire_grants(self._stores.books, at=now)
        mark_old_holds(self._stores.books, placed_before=now - self._hold_ttl)
        self._due = now + self._every


class Reconciling:
    """Looks at the books every so often; sums over large tables take a twentieth of the time at
    most."""

    def __init__(self, stores: Stores, metrics: WorkerMetrics, *, every_s: float) -> None:
        self._reconciliation = Reconciliation(SqlReconciliation(stores.database).snapshot)
        self._metrics = metrics
        self._every_s = every_s
        self._due_s = self._deep_due_s = time.monotonic()
        metrics.reconciled = lambda: self._reconciliation.last

    def run_if_due(self) -> None:
        """A look that fails keeps nobody from settling; the next one tries again."""
        began_s = time.monotonic()
        if began_s < self._due_s:
            return
        is_deep = began_s >= self._deep_due_s
        try:
            self._reconciliation.look(is_deep=is_deep)
        except Failure as failure:
            self._metrics.reconciliation_failures += 1
            log.error("books.not_reconciled", code=failure.code, reason=str(failure))
        ended_s = time.monotonic()
        self._due_s = ended_s + self._every_s
        if is_deep:
            self._deep_due_s = ended_s + max(DEEP_EVERY_S, DEEP_SHARE * (ended_s - began_s))


class Worker:
    """Follows event logs, or the outboxes of a folder, from the position that the books remember.

    While there is more than a batch to do, another process prepares the next one meanwhile.
    """

    def __init__(
        self,
        stores: Stores,
        logs: EventLogs | Path,
        *,
        batch_max: int,
        backlog_min: int = BACKLOG_MIN,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._stores = stores
        self._logs = OutboxFolder(logs) if isinstance(logs, Path) else logs
        self._batch_max = batch_max
        self._backlog_min = backlog_min
        self._positions: dict[str, int] = {}
        self._prices: Mapping[str, CanonicalDocument] = {}
        self._rating = BatchRating({})
        self._preparation: PreparationProcess | None = None
        self._metrics = metrics or WorkerMetrics()
        self._lags_due_s = 0.0

    def work(self) -> int:
        """Settle what is there now, some batches of each outbox; returns how many records it read."""
        read = 0
        failure: EventLogUnavailable | None = None
        readers = self._logs.readers()
        for reader in readers:
            try:
                read += self._settle_log(reader)
            except EventLogUnavailable as unavailable:
                # One log that cannot be read keeps nobody from the others.
                failure = unavailable
        self._note_lags(readers)
        if failure and not read:
            raise failure
        return read

    def close(self) -> None:
        self._stop_preparation()
        self._logs.close()

    def _note_lags(self, readers: Sequence[EventLogReader]) -> None:
        now_s = time.monotonic()
        if now_s < self._lags_due_s:
            return
        self._lags_due_s = now_s + LAGS_EVERY_S
        known = [reader for reader in readers if reader.log_id in self._positions]
        self._metrics.logs = {
            reader.log_id: LogStanding(self._positions[reader.log_id], _newest(reader))
            for reader in known
        }

    def _settle_log(self, reader: EventLogReader) -> int:
        """Up to some batches in a row, so that a busy log keeps both processes at work and does
        not keep the others waiting for long."""
        read = 0
        for _ in range(BATCHES_IN_A_ROW):
            count = self._settle_next(reader)
            read += count
            if count < self._batch_max:
                break
        return read

    def _settle_next(self, reader: EventLogReader) -> int:
        position = self._position(reader.log_id)
        try:
            batch = self._prepare(reader, position)
        except EventLogUnavailable:
            # The position may be out of date, and what comes after it pruned by now.
            del self._positions[reader.log_id]
            raise
        if batch is None:
            return 0
        if self._refresh_prices():
            batch = self._prepare(reader, position)
            if batch is None:
                # How far the outbox is durable was lost with the power of its machine, and is said
                # again by the gateway that starts there.
                return 0
        began_s = time.monotonic()
        try:
            with collection_paused(), self._stores.books.write() as unit:
                counts = settle_batch(batch, unit, at=self._stores.clock.now())
                set_aside = unit.set_aside
        except PositionMoved as moved:
            log.warning("worker.position_moved", reason=str(moved))
            del self._positions[reader.log_id]
            return batch.record_count
        self._positions[reader.log_id] = batch.last_position
        self._logs.settled(reader, batch.last_position)
        if set_aside:
            self._logs.set_aside(reader, [(event.reason, event.body) for event in set_aside])
        took_s = time.monotonic() - began_s
        self._metrics.observe(batch, counts, at=self._stores.clock.now(), took_s=took_s)
        log.info("events.settled", log_id=reader.log_id, read=batch.record_count, **counts)
        return batch.record_count

    def _prepare(self, reader: EventLogReader, position: int) -> PreparedBatch | None:
        """Prepare here, or take what the other process has ready and let it go on."""
        if not isinstance(reader, OutboxReader):
            return prepare_next(reader, position, self._rating, records_max=self._batch_max)
        wanted = Wanted(reader.path, position, self._batch_max)
        if self._preparation is None:
            batch = prepare_wanted(reader, wanted, self._rating)
            if batch and batch.record_count >= self._backlog_min:
                self._preparation = PreparationProcess(self._prices)
        else:
            try:
                batch = self._preparation.fetch(wanted)
            except PreparationStopped:
                self._stop_preparation()
                raise
        if self._preparation and batch and batch.record_count == self._batch_max:
            after = Wanted(reader.path, batch.last_position, self._batch_max)
            self._preparation.request(after)
        return batch

    def _refresh_prices(self) -> bool:
        """A price book is published before any event can name it: if none is new after a batch was
        prepared, the batch was rated with all that it needs."""
        if len(self._prices) == self._stores.audit.price_count():
            return False
        self._prices = self._stores.audit.price_documents()
        self._rating = BatchRating(self._prices)
        self._stop_preparation()
        return True

    def _stop_preparation(self) -> None:
        if self._preparation:
            self._preparation.close()
        self._preparation = None

    def _position(self, log_id: str) -> int:
        if log_id not in self._positions:
            with self._stores.books.write() as unit:
                self._positions[log_id] = unit.position(log_id)
        return self._positions[log_id]


def _newest(reader: EventLogReader) -> int | None:
    """A log that cannot be read has said so already: of its end nothing is known."""
    try:
        return reader.newest()
    except EventLogUnavailable:
        return None
