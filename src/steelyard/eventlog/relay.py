"""The relay: carries each outbox's events to Kafka, in order, from where it last was.

How far it is stands in the outbox's folder. After a crash some events are sent again; the worker
knows them by their id and their content.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog

from steelyard.eventlog.disk import sync_folder
from steelyard.eventlog.log import EventLogUnavailable, LogRecord
from steelyard.eventlog.outbox_reader import OutboxReader, find_outboxes

log = structlog.get_logger()

RELAYED_FILE: Final = "relayed"


class EventSender(Protocol):
    """Takes events for good, or raises EventLogUnavailable."""

    def send(self, records: Sequence[LogRecord]) -> None: ...

    def close(self) -> None: ...


class Relay:
    """Follows every outbox of a folder."""

    def __init__(self, sender: EventSender, outbox_dir: Path, *, batch_max: int) -> None:
        self._sender = sender
        self._outbox_dir = outbox_dir
        self._batch_max = batch_max
        self._readers: dict[Path, OutboxReader] = {}

    def work(self) -> int:
        """Carry what is there now, a batch of each outbox; returns how many events.

        An outbox that cannot be read keeps nobody from the others; a broker that takes nothing does.
        """
        carried = 0
        failure: EventLogUnavailable | None = None
        for path in find_outboxes(self._outbox_dir):
            try:
                records = self._read(path)
            except EventLogUnavailable as unreadable:
                failure = unreadable
                continue
            if records:
                self._carry(path, records)
            carried += len(records)
        if failure and not carried:
            raise failure
        return carried

    def close(self) -> None:
        self._sender.close()

    def _read(self, path: Path) -> Sequence[LogRecord]:
        reader = self._reader(path)
        return reader.read_after(read_relayed(path), limit=self._batch_max) if reader else ()

    def _carry(self, path: Path, records: Sequence[LogRecord]) -> None:
        self._sender.send(records)
        _write_relayed(path, records[-1].position)
        log.info("events.relayed", log_id=self._readers[path].log_id, count=len(records))

    def _reader(self, path: Path) -> OutboxReader | None:
        """None for an outbox that its gateway is still making."""
        if path not in self._readers:
            try:
                self._readers[path] = OutboxReader(path)
            except EventLogUnavailable:
                return None
        return self._readers[path]


def read_relayed(outbox: Path) -> int:
    """How far an outbox has been carried to Kafka."""
    try:
        return int((outbox / RELAYED_FILE).read_text())
    except FileNotFoundError:
        return 0


def _write_relayed(outbox: Path, position: int) -> None:
    """Durable, and whole or not at all: it says what may be deleted."""
    draft = outbox / f"{RELAYED_FILE}.draft"
    try:
        with draft.open("w") as file:
            file.write(str(position))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(outbox / RELAYED_FILE)
        sync_folder(outbox)
    except OSError as error:
        raise EventLogUnavailable(f"the relay cannot store how far it is: {error}") from error
