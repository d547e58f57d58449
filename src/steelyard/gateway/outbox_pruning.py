"""Deletes what the outbox need not keep: segments whose events are all in the books."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import anyio
import anyio.to_thread
import structlog

from steelyard.billing.books import Books
from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.eventlog.outbox import Outbox

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OutboxPruning:
    """Asks the books what may go.

    Where a relay carries the events on, their place in the books is not one of this log, so that
    the books are asked whether each of them has ended its hold.
    """

    outbox: Outbox
    books: Books
    clock: Clock
    keep_s: float
    every_s: float
    # How far the relay is; None where the worker reads the outbox itself.
    relayed: Callable[[], int] | None = None

    def prune(self) -> int:
        """Returns how many segments went; raises BooksUnavailable."""
        if self.relayed is None:
            with self.books.write() as unit:
                position = unit.position(self.outbox.log_id)
            return self._prune(position)
        pruned = 0
        while (oldest := self.outbox.oldest_events()) and oldest[0] <= self.relayed():
            with self.books.write() as unit:
                is_settled = len(unit.hold_ends(oldest[1])) == len(oldest[1])
            if not is_settled or not self._prune(oldest[0]):
                break
            pruned += 1
        return pruned

    def _prune(self, position: int) -> int:
        written_before = self.clock.now() - timedelta(seconds=self.keep_s)
        return self.outbox.prune(position, written_before=written_before)

    async def watch(self) -> None:
        """Prune for ever; while the books are away the outbox keeps everything."""
        while True:
            await anyio.sleep(self.every_s)
            try:
                pruned = await anyio.to_thread.run_sync(self.prune)
            except (Failure, OSError) as failure:
                log.warning("outbox.prune_failed", reason=str(failure))
                continue
            if pruned:
                log.info("outbox.pruned", segments=pruned)
