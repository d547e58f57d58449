"""After a crash: every hold that the dead gateway left open gets its event."""

import structlog

from steelyard.billing.books import Books
from steelyard.clock import Clock
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.event_draft import unserved_draft

log = structlog.get_logger()


def resolve_open_holds(books: Books, outbox: Outbox, *, source_prefix: str, clock: Clock) -> int:
    """Close the attempts of earlier lives of this gateway; returns how many there were.

    An attempt whose event is in the outbox already was closed before the crash: the worker will
    settle it. Call this before the first request.
    """
    with books.write() as unit:
        holds = unit.open_holds(source_prefix=source_prefix)
    lost = [hold for hold in holds if not outbox.holds_event(hold.id)]
    drafts = [unserved_draft(hold, end_cause="gateway_crashed", at=clock.now()) for hold in lost]
    for pending in [outbox.append(draft) for draft in drafts]:
        pending.done.result()
    if lost:
        log.warning("holds.resolved_after_crash", count=len(lost))
    return len(lost)
