"""Reads an outbox beside its writer: durable events only, from any position that is still kept."""

import os
from pathlib import Path

from steelyard.eventlog.durable_mark import read_mark
from steelyard.eventlog.log import EventLogUnavailable, LogRecord
from steelyard.eventlog.segment import (
    HEADER_BYTES,
    OutboxDamaged,
    SegmentName,
    read_header,
    segment_names,
    unpack_batch,
)
from steelyard.eventlog.segment_writer import LOG_ID_FILE

CHUNK_BYTES = 4 * 1024 * 1024


class OutboxPruned(EventLogUnavailable):
    """The events after this position are not in the outbox any more: it was told that the books
    have them. Books that were restored from a backup need the outboxes of that time too."""

    code = "outbox_pruned"


class OutboxReader:
    """Implements EventLogReader on the folder of one outbox."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.log_id = (path / LOG_ID_FILE).read_text()
        except OSError as error:
            raise EventLogUnavailable(f"the outbox {path} is not there yet: {error}") from error
        # Where the last read ended: its position, its segment, and the batch that follows.
        self._read_to = 0
        self._segment_number = 0
        self._offset = 0
        # How far `newest` has walked over the batches of the last segment.
        self._newest_in = 0
        self._newest_offset = 0
        self._newest_position = 1

    def read_after(self, position: int, *, limit: int) -> list[LogRecord]:
        """The next events; raises EventLogUnavailable, OutboxPruned or OutboxDamaged."""
        try:
            return self._read_after(position, limit)
        except OSError as error:
            raise EventLogUnavailable(f"the outbox {self.path} failed: {error}") from error

    def newest(self) -> int | None:
        """The position of the last durable event; only headers of batches are read for it."""
        try:
            return self._newest()
        except OSError as error:
            raise EventLogUnavailable(f"the outbox {self.path} failed: {error}") from error

    def close(self) -> None:
        """Nothing is held open between two reads."""

    def _newest(self) -> int | None:
        durable = read_mark(self.path)
        segments = segment_names(self.path)
        last = next((n for n in segments if n.number == durable.segment_number), None)
        if last is None:
            return None
        if self._newest_in != last.number:
            self._newest_in, self._newest_offset = last.number, 0
            self._newest_position = last.first_position
        with last.path_in(self.path).open("rb") as file:
            while self._newest_offset < durable.length:
                header = os.pread(file.fileno(), HEADER_BYTES, self._newest_offset)
                read = read_header(header)
                if read is None:
                    raise OutboxDamaged(f"{last.path_in(self.path)} is bad")
                self._newest_position = read[0]
                self._newest_offset += read[1]
        return self._newest_position - 1

    def _read_after(self, position: int, limit: int) -> list[LogRecord]:
        durable = read_mark(self.path)
        segments = [n for n in segment_names(self.path) if n.number <= durable.segment_number]
        if not segments:
            return []
        index = self._segment_of(position, segments)
        records: list[LogRecord] = []
        for name, following in zip(segments[index:], [*segments[index + 1 :], None], strict=True):
            path = name.path_in(self.path)
            is_last = name.number == durable.segment_number
            with path.open("rb") as file:
                length = durable.length if is_last else os.fstat(file.fileno()).st_size
                limits = position, limit, following
                self._read_segment(file.fileno(), name, length, limits, records)
            if len(records) >= limit:
                break
        return records

    def _segment_of(self, position: int, segments: list[SegmentName]) -> int:
        """The last segment that begins at the next event or before it."""
        found = [i for i, name in enumerate(segments) if name.first_position <= position + 1]
        if not found:
            raise OutboxPruned(
                f"{self.path} begins with event {segments[0].first_position}; "
                f"event {position + 1} is asked for. {OutboxPruned.__doc__}"
            )
        return found[-1]

    def _read_segment(
        self,
        descriptor: int,
        name: SegmentName,
        length: int,
        limits: tuple[int, int, SegmentName | None],
        records: list[LogRecord],
    ) -> None:
        position, limit, following = limits
        is_continued = position == self._read_to and name.number == self._segment_number
        offset = self._offset if is_continued else 0
        content, content_at = memoryview(b""), offset
        while offset < length and len(records) < limit:
            batch = unpack_batch(content, offset - content_at)
            if batch is None:
                size = max(CHUNK_BYTES, 2 * (len(content) - (offset - content_at)))
                if content_at + len(content) >= length:
                    raise OutboxDamaged(f"{name.path_in(self.path)} is bad at byte {offset}")
                content_at = offset
                content = memoryview(os.pread(descriptor, min(size, length - offset), offset))
                continue
            if following and batch.events and batch.first_position >= following.first_position:
                return
            skipped = max(0, position + 1 - batch.first_position)
            wanted = batch.events[skipped : skipped + limit - len(records)]
            first = batch.first_position + skipped
            records.extend(map(LogRecord, range(first, first + len(wanted)), wanted))
            self._segment_number, self._offset = name.number, offset
            if first + len(wanted) >= batch.next_position:
                offset += batch.ends - batch.begins
                self._offset = offset
            if wanted:
                self._read_to = records[-1].position


def find_outboxes(folder: Path) -> list[Path]:
    """The outboxes of all gateways that keep theirs in this folder."""
    return sorted(folder.glob("*.outbox"))
