"""Leases for operators: who has what, and the end of a lease whose gateway never comes back."""

from collections.abc import Collection
from datetime import datetime

import structlog

from steelyard.billing.fund_books import FundBooks
from steelyard.billing.lease_desk import return_rest
from steelyard.errors import Refusal
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Command

log = structlog.get_logger()


class LeaseNotFound(Refusal):
    """There is no such lease. 'steelyard lease list' shows those that there are."""

    code = "lease_not_found"


class LeaseInUse(Refusal):
    """Events of the lease may still come, and would then be quarantined and charge nobody."""

    code = "lease_in_use"


def list_leases(books: FundBooks) -> list[Lease]:
    """All that are out, the oldest first."""
    with books.write() as unit:
        return sorted(unit.leases_of(source_prefix=""), key=lambda lease: lease.granted_at)


def find_lease(books: FundBooks, lease_id: str) -> Lease:
    """Raises LeaseNotFound."""
    with books.write() as unit:
        lease = unit.lock_leases([lease_id]).get(lease_id)
    if lease is None:
        raise LeaseNotFound(f"there is no lease {lease_id!r}")
    return lease


def events_missing(books: FundBooks, event_ids: Collection[str]) -> set[str]:
    """Which of these events are neither in the books nor dismissed from quarantine."""
    with books.write() as unit:
        known = unit.hold_ends(event_ids)
        return set(event_ids) - known.keys() - unit.events_dismissed(set(event_ids) - known.keys())


def end_lease_by_hand(books: FundBooks, lease_id: str, *, command: Command) -> Lease:
    """Give back what is left of a lease, now. Whoever calls this knows that no event of it is to
    come: one that comes all the same is quarantined. Raises LeaseNotFound."""
    with books.write() as unit:
        lease = unit.lock_leases([lease_id]).get(lease_id)
        if lease is None:
            raise LeaseNotFound(f"there is no lease {lease_id!r}")
        return_rest(unit, lease, at=command.at, command=command)
    log.warning("lease.ended_by_hand", lease_id=lease_id, actor=command.actor)
    return lease


def is_over(lease: Lease, *, at: datetime) -> bool:
    """Whether its gateway grants nothing from it any more, if its clock is right."""
    return lease.status in {"drained", "ended"} or lease.expires_at <= at
