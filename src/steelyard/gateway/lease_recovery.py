"""After a crash: the leases of a dead gateway go back, once their last event is in the books.

Each of its events is in the outbox by then: those that it wrote, and those that recovery wrote for
what it left open. Which of them comes last, this finds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.to_thread
import structlog

from steelyard.billing.lease_desk import LeaseDesk
from steelyard.clock import Clock
from steelyard.errors import Failure
from steelyard.eventlog.outbox import Outbox

log = structlog.get_logger()

LOOK_AGAIN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class LeaseRecovery:
    """Ends the leases of earlier lives of this gateway."""

    desk: LeaseDesk
    outbox: Outbox
    clock: Clock
    source_prefix: str

    def find(self) -> dict[str, str | None]:
        """Each lease of an earlier life, with its last event in the outbox; in a thread, before
        anything is appended.

        What was pruned from the outbox is in the books already.
        """
        left = self.desk.left_by(source_prefix=self.source_prefix)
        ids = [lease.id for lease in left if lease.source != self.outbox.source]
        last = self.outbox.last_events_of(ids)
        return {lease_id: last.get(lease_id) for lease_id in ids}

    async def end(self, found: Mapping[str, str | None], *, written: Mapping[str, str]) -> None:
        """End them; `written` names the last event that recovery wrote of each, where it did."""
        last = {lease_id: written.get(lease_id, event_id) for lease_id, event_id in found.items()}
        while last:
            try:
                await anyio.to_thread.run_sync(self._end_all, last)
                break
            except Failure as failure:
                # The gateway serves already, and must not die of books that are away.
                log.warning("leases.not_ended", count=len(last), reason=str(failure))
            await anyio.sleep(LOOK_AGAIN_S)
        if last:
            log.info("leases.ended_after_crash", count=len(last))

    def _end_all(self, last: Mapping[str, str | None]) -> None:
        for lease_id, event_id in last.items():
            self.desk.end(lease_id, last_event_id=event_id, at=self.clock.now())
