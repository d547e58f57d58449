"""Writes the records of a batch to its files, in a thread: what has gathered is synced at once."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import structlog

from steelyard.eventlog.disk import LocalFile, SegmentFile
from steelyard.eventlog.group_commit import Commit, CommitQueue
from steelyard.gateway.batches.records import BatchesUnavailable

log = structlog.get_logger()

RETRY_S: Final = 0.2
GROUP_MAX: Final = 1_000
# Nobody waits for one line: many are synced, and then charged, together.
GATHER_S: Final = 0.03


def open_to_append(path: Path) -> SegmentFile:
    return LocalFile(path, is_new=False)


@dataclass(slots=True, eq=False)
class _Grown:
    """A file, and how long it is for certain."""

    path: Path
    file: SegmentFile
    length: int


@dataclass(slots=True, eq=False)
class Record:
    """Bytes for the end of a file; `written` is called in the writer's thread."""

    grown: _Grown
    content: bytes
    written: Callable[[], None] | None
    is_withdrawn: bool = False
    commit: "Commit[Record] | None" = None

    def expect_written(self) -> None:
        """Raise BatchesUnavailable if it is not; for after the end of the writer."""
        assert self.commit is not None, "a record that was put has a commit"
        self.commit.done.result(timeout=0)


class ResultWriter:
    """Appends to some files, what has gathered at once; `gather_max` records need not wait for more.
    While the disk fails, records wait and are tried again."""

    def __init__(
        self,
        *paths: Path,
        gather_max: int = 1,
        open_file: Callable[[Path], SegmentFile] = open_to_append,
    ) -> None:
        self._files = {path: _Grown(path, open_file(path), path.stat().st_size) for path in paths}
        self._queue = CommitQueue[Record](
            batch_max=GROUP_MAX, gather_s=GATHER_S, gather_max=gather_max
        )
        self._is_failing = False
        self._torn: set[_Grown] = set()
        self._is_closing = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._write, name="batch results", daemon=True)
        self._thread.start()

    def put(
        self, path: Path, content: bytes, *, written: Callable[[], None] | None = None
    ) -> Record:
        """Queue a record; it is on the disk when its commit is."""
        record = Record(self._files[path], content, written)
        record.commit = self._queue.put(record)
        return record

    async def durable(self, record: Record, *, within_s: float | None = None) -> None:
        """Return when it is on the disk. Raises BatchesUnavailable if it never will be, which is so
        after `within_s`."""
        assert record.commit is not None, "a record that was put has a commit"
        try:
            await record.commit.durable(timeout_s=within_s)
        except TimeoutError:
            if await anyio.to_thread.run_sync(self._withdraw, record):
                message = "an answer cannot be kept: the disk does not take it"
                raise BatchesUnavailable(message) from None

    async def flushed(self) -> None:
        """Return when all that was put is on the disk; raises BatchesUnavailable if it never will
        be."""
        grown = next(iter(self._files.values()))
        await self.durable(self.put(grown.path, b""))

    def close(self) -> None:
        """Write what is queued, unless the disk fails, and let go of the files."""
        self._is_closing.set()
        self._queue.close()
        self._thread.join()
        for grown in self._files.values():
            grown.file.close()

    def _withdraw(self, record: Record) -> bool:
        """Take a record back; False if it is on the disk already."""
        assert record.commit is not None, "a record that was put has a commit"
        with self._writing:
            record.is_withdrawn = not record.commit.done.done()
            return record.is_withdrawn

    def _write(self) -> None:
        while commit := self._queue.take():
            while not self._append(commit):
                if self._is_closing.wait(RETRY_S):
                    self._give_up(commit)
                    break

    def _give_up(self, commit: Commit[Record]) -> None:
        with suppress(OSError):
            self._cut_torn()
        commit.finish(BatchesUnavailable("the batch stopped while its disk took nothing"))

    def _append(self, commit: Commit[Record]) -> bool:
        with self._writing:
            records = [record for record in commit.items if not record.is_withdrawn]
            contents: dict[_Grown, list[bytes]] = {}
            for record in records:
                contents.setdefault(record.grown, []).append(record.content)
            try:
                self._cut_torn()
                for grown, content in contents.items():
                    grown.file.append(memoryview(b"".join(content)))
            except OSError as error:
                if not self._is_failing:
                    log.error("batch.results_not_written", reason=str(error))
                self._is_failing = True
                self._torn.update(contents)
                return False
            self._is_failing = False
            for grown, content in contents.items():
                grown.length += sum(map(len, content))
            for record in records:
                if record.written is not None:
                    record.written()
            commit.finish()
            return True

    def _cut_torn(self) -> None:
        """Drop what a write that failed may have left."""
        while self._torn:
            grown = next(iter(self._torn))
            grown.file.cut(grown.length)
            self._torn.remove(grown)
