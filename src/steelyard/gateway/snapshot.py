"""Copies in memory of what is slow to read, read again when its revision says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import structlog

from steelyard.errors import Failure

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Snapshot(Generic[T]):
    """Holds the newest copy; a SnapshotWatch keeps it so."""

    load: Callable[[], T]
    revision: Callable[[], int]
    _copy: T | None = None
    _revision: int | None = None
    _begun: int = 0
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def copy(self) -> T:
        assert self._copy is not None, "the snapshot was not refreshed yet"
        return self._copy

    @property
    def is_being_read(self) -> bool:
        return self._lock.locked()

    def is_behind(self, revision: int) -> bool:
        """Whether the copy is of another revision than this."""
        return revision != self._revision

    async def refresh(self) -> None:
        """Read again if something has changed; callers that come together share one look."""
        begun = self._begun
        async with self._lock:
            # Whoever had the lock meanwhile has looked after this call began.
            if self._begun == begun:
                self._begun += 1
                await anyio.to_thread.run_sync(self._refresh)

    def _refresh(self) -> None:
        # The revision is read first: a change in between is then found at the next look.
        revision = self.revision()
        if self.is_behind(revision):
            self._copy = self.load()
            self._revision = revision


@dataclass(frozen=True, slots=True)
class SnapshotWatch:
    """Keeps snapshots as fresh as `every_s`.

    One look at the books says which are behind. Each of those is read by itself: one that takes
    long keeps no other waiting.
    """

    snapshots: Sequence[Snapshot[Any]]
    every_s: float

    async def watch(self) -> None:
        """Look for ever; while the books are away the last copies stay in use."""
        async with anyio.create_task_group() as reading:
            while True:
                await anyio.sleep(self.every_s)
                try:
                    behind = await anyio.to_thread.run_sync(self._find_behind)
                except Failure as failure:
                    _complain(failure)
                    continue
                for snapshot in behind:
                    if not snapshot.is_being_read:
                        reading.start_soon(_read_again, snapshot)

    def _find_behind(self) -> Sequence[Snapshot[Any]]:
        # Several may go by the same revision.
        revisions = {look: look() for look in {each.revision for each in self.snapshots}}
        return [each for each in self.snapshots if each.is_behind(revisions[each.revision])]


async def _read_again(snapshot: Snapshot[Any]) -> None:
    try:
        await snapshot.refresh()
    except Failure as failure:
        _complain(failure)


def _complain(failure: Failure) -> None:
    log.warning("snapshot.refresh_failed", reason=str(failure))
