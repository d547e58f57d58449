"""I3, on the machine of the gateways: open holds are requests in flight.

The books alone cannot say whether a request is still running. The outbox of its gateway can: the
attempt was opened there, or its event is on the way.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Final

from steelyard.billing.fund_books import FundBooks
from steelyard.billing.invariant_check import Check
from steelyard.ledger.hold import Hold

# The opening of an attempt is durable a moment after its hold.
YOUNG: Final = timedelta(seconds=10)
HOLDS_MAX: Final = 1_000_000

# Which of these attempts the outbox of a source has; None where that outbox is not here.
FindAttempts = Callable[[str, Collection[str]], set[str] | None]


def check_flight(books: FundBooks, find_attempts: FindAttempts, *, at: datetime) -> Check:
    """Compare the open holds of gateways whose outboxes are here with what is in those."""
    check = Check("I3", "every open hold has a request in flight, or its event on the way")
    with books.write() as unit:
        holds = unit.list_holds(only_unresolved=False, limit=HOLDS_MAX)
    by_source: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        check.expect(
            hold.status != "unresolved",
            lambda h=hold: f"hold {h.id} is open since {h.placed_at}: 'steelyard hold list'",
        )
        if hold.placed_at <= at - YOUNG:
            by_source[hold.source].append(hold)
    for source, placed in by_source.items():
        ids = {hold.id for hold in placed}
        found = find_attempts(source, ids)
        if found is None:
            continue
        # What has ended meanwhile may be gone from the outbox, too.
        lost = _still_open(books, ids - found)
        for hold_id in sorted(ids):
            check.expect(
                hold_id not in lost,
                lambda i=hold_id, s=source: f"hold {i} of {s} has no attempt in its outbox",
            )
    return check


def check_ended_leases(books: FundBooks) -> Check:
    """A lease that has ended waits for its last event, and goes with it."""
    check = Check("I8", "every lease that has ended waits for an event that is still to come")
    with books.write() as unit:
        leases = [one for one in unit.leases_of(source_prefix="") if one.last_event_id]
        awaited = {one.last_event_id for one in leases if one.last_event_id}
        done = unit.hold_ends(awaited).keys() | unit.events_dismissed(awaited)
    for lease in leases:
        check.expect(
            lease.last_event_id not in done,
            lambda one=lease: (
                f"lease {one.id} waits for event {one.last_event_id}, which is done with: "
                "'steelyard lease end'"
            ),
        )
    return check


def _still_open(books: FundBooks, hold_ids: Collection[str]) -> set[str]:
    if not hold_ids:
        return set()
    with books.write() as unit:
        return set(unit.read_holds(hold_ids))
