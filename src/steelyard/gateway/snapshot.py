"""A copy in memory of something slow to read, read again when its revision says so."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
import structlog

from steelyard.errors import Failure

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(slots=True)
class Snapshot(Generic[T]):
    """Holds the newest copy; `watch` keeps it so, within `every_s` of a change."""

    load: Callable[[], T]
    revision: Callable[[], int]
    every_s: float
    _copy: T | None = None
    _revision: int | None = None
    _begun: int = 0
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def copy(self) -> T:
        assert self._copy is not None, "the snapshot was not refreshed yet"
        return self._copy

    async def refresh(self) -> None:
        """Read again if something has changed; callers that come together share one look."""
        begun = self._begun
        async with self._lock:
            # Whoever had the lock meanwhile has looked after this call began.
            if self._begun == begun:
                self._begun += 1
                await anyio.to_thread.run_sync(self._refresh)

    async def watch(self) -> None:
        """Refresh for ever; while the books are away the last copy stays in use."""
        while True:
            await anyio.sleep(self.every_s)
            try:
                await self.refresh()
            except Failure as failure:
                log.warning("snapshot.refresh_failed", reason=str(failure))

    def _refresh(self) -> None:
        # The revision is read first: a change in between is then found at the next look.
        revision = self.revision()
        if revision != self._revision:
            self._copy = self.load()
            self._revision = revision
