"""The event log of one machine: the outboxes in a folder, read directly. No other service."""

from collections.abc import Sequence
from pathlib import Path

import structlog

from steelyard.eventlog.log import EventLogReader, EventLogUnavailable
from steelyard.eventlog.outbox_reader import OutboxReader, find_outboxes

log = structlog.get_logger()


class OutboxFolder:
    """Implements EventLogs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[Path, OutboxReader] = {}
        self._unreadable: set[Path] = set()

    def readers(self) -> Sequence[OutboxReader]:
        for path in find_outboxes(self._folder):
            if path not in self._readers:
                self._open(path)
        return list(self._readers.values())

    def settled(self, reader: EventLogReader, position: int) -> None:
        """The gateway asks the books by itself."""

    def set_aside(self, reader: EventLogReader, records: Sequence[tuple[str, bytes]]) -> None:
        """The books keep what is in quarantine; there is no other place for it here."""

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

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
