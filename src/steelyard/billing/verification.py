"""Verification: reads the whole of the books again and checks each invariant by another path.

It trusts no total and no status: sums are made anew from postings and from the stored bytes of
every event, which are decoded, hashed and rated again from the published bytes of the prices. Read
`verify_books` first. Events pass by once, in the order of source and sequence.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from steelyard.billing.event_checks import (
    ChainCheck,
    CountCheck,
    EffectCheck,
    EventCheck,
    HourCheck,
    RatingCheck,
)
from steelyard.billing.invariant_check import Check
from steelyard.billing.ledger_checks import PostingRow, PostingSums, check_balances, check_holds
from steelyard.billing.ledger_checks import check_sums as check_transaction_sums
from steelyard.billing.stored_event import EventRow, HourRow
from steelyard.ledger.hold import Hold
from steelyard.pricing.price_book import CanonicalDocument


class Audit(Protocol):
    """Everything in the books, row by row, at one moment."""

    def postings(self) -> Iterable[PostingRow]: ...

    def balances(self) -> Mapping[str, int]: ...

    def holds(self) -> Iterable[Hold]:
        """The open ones."""
        ...

    def budget_reservations(self) -> Mapping[tuple[str, str], int]:
        """What every window of a budget says is reserved, by budget and window."""
        ...

    def events(self) -> Iterable[EventRow]:
        """In the order of source and sequence."""
        ...

    def hours(self) -> Iterable[HourRow]:
        """Every row of the hourly sums."""
        ...

    def price_documents(self) -> Mapping[str, CanonicalDocument]:
        """By hash; a document whose bytes do not give its hash is left out."""
        ...

    def tampered_prices(self) -> Sequence[str]: ...

    def tampered_invoices(self) -> Sequence[str]:
        """The numbers of invoices whose content does not give their id."""
        ...

    def invoice_count(self) -> int: ...

    def suspended_count(self) -> int:
        """Events in suspense that nobody has decided on."""
        ...

    def quarantined_count(self) -> int:
        """Records in quarantine that nobody has looked at."""
        ...


def verify_books(audit: Audit) -> list[Check]:
    """Check every invariant; the books are right if every check holds."""
    postings = PostingSums.of(audit.postings())
    holds = {hold.id: hold for hold in audit.holds()}
    documents = audit.price_documents()
    hours = HourCheck()
    checks: list[EventCheck] = [
        EffectCheck(postings, holds),
        RatingCheck(documents),
        ChainCheck(),
        CountCheck(documents),
        hours,
    ]
    for event in audit.events():
        for check in checks:
            check.see(event)
    hours.compare(audit.hours())
    return [
        check_transaction_sums(postings),
        *check_balances(postings, audit.balances()),
        check_holds(postings, holds.values(), audit.budget_reservations()),
        *(check.finish() for check in checks),
        _check_documents(audit),
        _check_suspense(audit),
        _check_quarantine(audit),
    ]


def _check_documents(audit: Audit) -> Check:
    check = Check("I6", "every price book and every invoice still has the hash it was issued under")
    tampered = [f"price version {sha256}" for sha256 in audit.tampered_prices()]
    tampered += [f"invoice {number}" for number in audit.tampered_invoices()]
    check.compared = len(audit.price_documents()) + audit.invoice_count()
    for name in tampered:
        check.expect(False, lambda n=name: f"{n} was changed")
    return check


def _check_suspense(audit: Audit) -> Check:
    check = Check("I5", "no event waits in suspense")
    count = audit.suspended_count()
    check.expect(count == 0, lambda: f"{count} events wait: 'steelyard suspense list' shows them")
    return check


def _check_quarantine(audit: Audit) -> Check:
    check = Check("I4", "no record waits in quarantine")
    count = audit.quarantined_count()
    check.expect(
        count == 0, lambda: f"{count} records wait in quarantine: 'steelyard quarantine list'"
    )
    return check
