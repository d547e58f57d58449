"""Deletes what the outbox need not keep: segments whose events are all in the books."""

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
    """Asks the books for the stored position of the log, and nothing else, what may go."""

    outbox: Outbox
    books: Books
    clock: Clock
    keep_s: float
    every_s: float

    def prune(self) -> int:
        """Returns how many segments went; raises BooksUnavailable."""
        with self.books.write() as unit:
            position = unit.position(self.outbox.log_id)
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
