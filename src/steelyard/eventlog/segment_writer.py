"""Writes batches to the segments of one outbox folder: durable, or not there at all."""

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Final, TextIO

from steelyard.eventlog.disk import Disk, SegmentFile, sync_folder
from steelyard.eventlog.durable_mark import Durable, DurableMark
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.segment import (
    Batch,
    OutboxDamaged,
    SegmentName,
    check_torn,
    pack_batch,
    read_batches,
    segment_names,
)
from steelyard.ids import new_id

SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
SEGMENTS_MIN: Final = 8
LOG_ID_FILE: Final = "log-id"


class SegmentWriter:
    """The only writer of one folder; a second process that opens it is refused."""

    def __init__(self, folder: Path, *, bytes_max: int, disk: Disk) -> None:
        self.folder = folder
        self.bytes_max = bytes_max
        self._disk = disk
        self._lock_file = _lock(folder)
        try:
            self.log_id = _read_or_make_log_id(folder)
            self._segments = segment_names(folder)
            self._mark = DurableMark(folder)
        except (OSError, EventLogUnavailable) as error:
            self._lock_file.close()
            if isinstance(error, EventLogUnavailable):
                raise
            raise EventLogUnavailable(f"the outbox {folder} failed: {error}") from error
        self._sizes: dict[int, int] = {}
        self.size = 0
        self.next_position = 1
        # None where the next batch has to begin a new segment.
        self._file: SegmentFile | None = None

    def read_back(self) -> Iterator[tuple[int, Batch]]:
        """Everything that earlier lives wrote, with the number of its segment. Torn ends are cut
        off on the way, and then it is known where to go on. Raises OutboxDamaged."""
        for name, following in self._with_following():
            if self._sizes and name.first_position > self.next_position:
                raise OutboxDamaged(
                    f"{self.folder} lacks the events from {self.next_position} to "
                    f"{name.first_position - 1}"
                )
            self.next_position = name.first_position
            path = name.path_in(self.folder)
            content, end = memoryview(path.read_bytes()), 0
            for batch in read_batches(content):
                end = batch.ends
                if _is_outdone(batch, following):
                    continue
                if batch.first_position != self.next_position:
                    raise OutboxDamaged(f"{path} has a gap in it")
                self.next_position = batch.next_position
                yield name.number, batch
            check_torn(content, end, path=path)
            _cut(path, end)
            self._sizes[name.number] = end
            self.size += end
        if self._segments:
            last = self._segments[-1]
            self._mark.set(Durable(last.number, self._sizes[last.number]))

    def batches(self) -> Iterator[Batch]:
        """Every batch, once everything has been read back."""
        for name, following in self._with_following():
            for batch in read_batches(memoryview(name.path_in(self.folder).read_bytes())):
                if not _is_outdone(batch, following):
                    yield batch

    def segment_path(self, number: int) -> Path:
        """Where a segment is that is still kept."""
        return next(name for name in self._segments if name.number == number).path_in(self.folder)

    def write(self, events: Sequence[bytes], opened: Sequence[bytes]) -> int:
        """Make a batch durable; returns the number of its segment. Raises OSError, with nothing
        written."""
        content = pack_batch(self.next_position, events, opened)
        if self.size + len(content) > self.bytes_max:
            raise OSError(f"the outbox has reached its limit of {self.bytes_max} bytes")
        number = self._begin_segment_if_due(len(content))
        assert self._file is not None, "a batch has a segment to go to"
        try:
            self._file.append(memoryview(content))
        except OSError:
            self._leave_segment(number)
            raise
        self._sizes[number] += len(content)
        self.size += len(content)
        self.next_position += len(events)
        self._mark.set(Durable(number, self._sizes[number]))
        return number

    def prune(self, *, settled: int, needed: Collection[int], written_before: datetime) -> int:
        """Delete old segments whose events are all settled and that nobody needs; returns how many.

        Where room is short, their age does not matter.
        """
        pruned = 0
        while len(self._segments) > 1:
            oldest, following = self._segments[0], self._segments[1]
            if following.first_position - 1 > settled or oldest.number in needed:
                break
            path = oldest.path_in(self.folder)
            is_young = path.stat().st_mtime >= written_before.timestamp()
            if is_young and self.size <= self.bytes_max // 2:
                break
            path.unlink()
            del self._segments[0]
            self.size -= self._sizes.pop(oldest.number)
            pruned += 1
        return pruned

    def oldest(self) -> tuple[int, list[bytes]] | None:
        """The events of the oldest segment that is finished, and the position of the last."""
        if len(self._segments) < 2:
            return None
        content = self._segments[0].path_in(self.folder).read_bytes()
        events = [event for batch in read_batches(memoryview(content)) for event in batch.events]
        return self._segments[1].first_position - 1, events

    def _with_following(self) -> Iterator[tuple[SegmentName, SegmentName | None]]:
        return zip_longest(list(self._segments), self._segments[1:])

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._mark.close()
        self._lock_file.close()

    def _begin_segment_if_due(self, length: int) -> int:
        last = self._segments[-1].number if self._segments else 0
        segment_bytes = min(SEGMENT_BYTES_MAX, self.bytes_max // SEGMENTS_MIN)
        if self._file and self._sizes[last] and self._sizes[last] + length > segment_bytes:
            self._file.close()
            self._file = None
        if self._file:
            return last
        name = SegmentName(last + 1, self.next_position)
        self._file = self._disk.create(name.path_in(self.folder))
        self._segments.append(name)
        self._sizes[name.number] = 0
        return name.number

    def _leave_segment(self, number: int) -> None:
        """After a failed write nobody knows what the disk has: cut it off, and never go on in this
        file. Where even that fails, the next segment begins at the same position, which outdoes it.
        """
        assert self._file is not None, "a segment is left once"
        # A full disk lets go of bytes; one that does not is broken, and the next write says so.
        with suppress(OSError):
            self._file.cut(self._sizes[number])
        self._file.close()
        self._file = None
        if not self._sizes[number]:
            with suppress(OSError):
                self._segments[-1].path_in(self.folder).unlink()
                del self._segments[-1], self._sizes[number]


def _lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise EventLogUnavailable(
            f"the outbox {folder} cannot be written: {error.strerror}"
        ) from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock_file.close()
        raise EventLogUnavailable(
            f"another gateway is writing {folder}; give each gateway a name of its own (--name)"
        ) from error
    return lock_file


def _read_or_make_log_id(folder: Path) -> str:
    """The identity of the log, made with the folder; it appears whole or not at all."""
    path = folder / LOG_ID_FILE
    if not path.exists():
        if segment_names(folder):
            raise OutboxDamaged(f"{folder} has segments, but its {LOG_ID_FILE} is gone")
        draft = folder / f"{LOG_ID_FILE}.draft"
        with draft.open("w") as file:
            file.write(new_id())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(folder)
    return path.read_text()


def _is_outdone(batch: Batch, following: SegmentName | None) -> bool:
    """Whether it is a write that failed and could not be cut off: it was never durable, and its
    events are in the segment that follows."""
    if following is None or not batch.events:
        return False
    return batch.first_position >= following.first_position


def _cut(path: Path, end: int) -> None:
    """Make a segment end there, and be durable up to there."""
    with path.open("r+b") as file:
        if end < os.fstat(file.fileno()).st_size:
            file.truncate(end)
        os.fsync(file.fileno())
