"""The outbox: a gateway's usage events on its own disk, durable before the client sees the end.

One writer thread commits whatever has gathered while the last commit ran, so that many answers
share one fsync and a lone answer waits for nobody.
"""

import fcntl
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TextIO, TypeVar

import structlog

from steelyard.batch_queue import BatchQueue
from steelyard.eventlog.log import EventLogUnavailable, LogRecord
from steelyard.ids import new_id
from steelyard.metering.usage_event import UsageEvent, UsageRecord, encode_event, hash_event
from steelyard.timestamp import write_timestamp

log = structlog.get_logger()
_T = TypeVar("_T")

FIRST_PREVIOUS_HASH = "0" * 64
RETRY_S = 0.2
BATCH_MAX = 1_000

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS outbox (log_id TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS events (
        position INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL
    )""",
)


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event before the outbox has given it its place in the source's chain."""

    id: str
    at: datetime
    record: UsageRecord


@dataclass(slots=True)
class PendingEvent:
    """An event on its way to the disk; `done` tells when it is there."""

    draft: EventDraft
    done: "Future[None]" = field(default_factory=Future["None"])


class Outbox:
    """The only writer of one outbox file; a second process that opens it is refused."""

    def __init__(self, path: Path, *, source: str, bytes_max: int) -> None:
        self.source = source
        self._lock_file = _lock(path)
        self._connection = _open(path, bytes_max=bytes_max)
        self._queue = BatchQueue[PendingEvent](batch_max=BATCH_MAX)
        self._sequence = 0
        self._previous_hash = FIRST_PREVIOUS_HASH
        self._failure: str | None = None
        self._is_closing = threading.Event()
        self._committing = threading.Lock()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise EventLogUnavailable while events cannot be written."""
        if self._failure is not None:
            raise EventLogUnavailable(
                f"usage events cannot be written ({self._failure}); free space on the disk of the "
                "outbox, or raise its limit (STEELYARD_OUTBOX_BYTES_MAX)"
            )

    def append(self, draft: EventDraft) -> PendingEvent:
        """Queue an event. While the disk fails it waits in memory and is tried again."""
        pending = PendingEvent(draft)
        self._queue.put(pending)
        return pending

    def amend(self, pending: PendingEvent, draft: EventDraft) -> bool:
        """Replace an event that is still waiting; False if it is on the disk already."""
        assert draft.id == pending.draft.id, "an event keeps its id"
        with self._committing:
            if pending.done.done():
                return False
            pending.draft = draft
            return True

    def holds_event(self, event_id: str) -> bool:
        """Whether an event of this id is in the file; for recovery, before anything is appended."""
        query = "SELECT 1 FROM events WHERE event_id = ?"
        return self._connection.execute(query, (event_id,)).fetchone() is not None

    def set_bytes_max(self, bytes_max: int) -> None:
        """Give the file more room, or less, from the next commit on."""
        with self._committing:
            _limit(self._connection, bytes_max)

    @staticmethod
    def envelope(
        draft: EventDraft, *, source: str, sequence: int, previous_hash: str
    ) -> UsageEvent:
        """The event in its place in the chain of its source."""
        return UsageEvent(
            id=draft.id,
            source=source,
            sequence=str(sequence),
            previoushash=previous_hash,
            subject=draft.record.payer_id,
            partitionkey=draft.record.organisation_id,
            time=write_timestamp(draft.at),
            data=draft.record,
        )

    def close(self) -> None:
        """Write what is queued, then let go of the file."""
        self._is_closing.set()
        self._queue.close()
        self._thread.join()
        self._connection.close()
        self._lock_file.close()

    def _write(self) -> None:
        while batch := self._queue.take():
            while not self._commit_locked(batch):
                if self._is_closing.wait(RETRY_S):
                    self._give_up(batch)
                    break

    def _commit_locked(self, batch: list[PendingEvent]) -> bool:
        with self._committing:
            return self._commit(batch)

    def _commit(self, batch: list[PendingEvent]) -> bool:
        sequence, previous_hash = self._sequence, self._previous_hash
        rows: list[tuple[str, bytes]] = []
        for pending in batch:
            sequence += 1
            body = encode_event(
                self.envelope(
                    pending.draft,
                    source=self.source,
                    sequence=sequence,
                    previous_hash=previous_hash,
                )
            )
            previous_hash = hash_event(body)
            rows.append((pending.draft.id, body))
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(
                    "INSERT INTO events (event_id, body) VALUES (?, ?)", rows
                )
        except sqlite3.Error as error:
            self._report_failure(str(error))
            return False
        self._sequence, self._previous_hash, self._failure = sequence, previous_hash, None
        for pending in batch:
            pending.done.set_result(None)
        return True

    def _report_failure(self, reason: str) -> None:
        if self._failure is None:
            log.error("outbox.write_failed", source=self.source, reason=reason)
        self._failure = reason

    def _give_up(self, batch: list[PendingEvent]) -> None:
        """The process ends while the disk still fails: say which events are lost, never silently.

        Their holds stay open, and the next start resolves them.
        """
        for pending in batch:
            log.critical(
                "usage_event.lost", event_id=pending.draft.id, amount=pending.draft.record.amount
            )
            pending.done.set_exception(
                EventLogUnavailable("the outbox closed before it could write")
            )


class OutboxReader:
    """Reads an outbox file beside its writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _translate(
            lambda: sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        )
        try:
            found = self._fetch("SELECT log_id FROM outbox", ())
        except EventLogUnavailable:
            self._connection.close()
            raise
        self.log_id = str(found[0][0])

    def read_after(self, position: int, *, limit: int) -> list[LogRecord]:
        query = "SELECT position, body FROM events WHERE position > ? ORDER BY position LIMIT ?"
        return [LogRecord(row[0], row[1]) for row in self._fetch(query, (position, limit))]

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, query: str, values: tuple[int, ...]) -> list[tuple[int, bytes]]:
        return _translate(lambda: self._connection.execute(query, values).fetchall())


def find_outboxes(folder: Path) -> list[Path]:
    """The outbox files of all gateways that keep theirs in this folder."""
    return sorted(folder.glob("*.outbox"))


def _lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise EventLogUnavailable(
            f"the outbox {path} cannot be written: {error.strerror}"
        ) from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock_file.close()
        raise EventLogUnavailable(
            f"another gateway is writing {path}; give each gateway a name of its own (--name)"
        ) from error
    return lock_file


def _open(path: Path, *, bytes_max: int) -> sqlite3.Connection:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=10
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _limit(connection, bytes_max)
        with connection:
            # All or nothing: a reader that comes in between finds no table, not half of an outbox.
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            if connection.execute("SELECT 1 FROM outbox").fetchone() is None:
                connection.execute("INSERT INTO outbox VALUES (?)", (new_id(),))
        return connection

    return _translate(connect)


def _limit(connection: sqlite3.Connection, bytes_max: int) -> None:
    page_bytes: int = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {max(bytes_max // page_bytes, 8)}")


def _translate(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except (sqlite3.Error, OSError) as error:
        raise EventLogUnavailable(f"the outbox failed: {error}") from error
