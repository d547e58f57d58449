"""Verification: the log is replayed from its start, and each invariant checked by another path.

It trusts no total and no status. Every record of every log passes by once, in the order in which it
came in: it is decoded, hashed and rated again from the published bytes of the prices. From that,
the open holds and the commands every balance, budget and hourly sum is made again, by code that
settlement does not use, and compared with what stands. Read `verify_books` first.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from steelyard.billing.credit_note_checks import CreditNoteCheck
from steelyard.billing.event_checks import (
    BudgetCheck,
    ChainCheck,
    CountCheck,
    EventCheck,
    HourCheck,
    RatingCheck,
    RowCheck,
)
from steelyard.billing.invariant_check import Check
from steelyard.billing.invoice_checks import InvoiceAudit, InvoiceCheck
from steelyard.billing.ledger_checks import (
    TransactionCheck,
    check_balances,
    check_holds,
    check_leases,
)
from steelyard.billing.log_checks import EffectCheck, LogCheck
from steelyard.billing.replay import ReplayCheck
from steelyard.billing.share_checks import ShareCheck, SharesByEvent
from steelyard.billing.stored_event import (
    AccountRow,
    AdjustmentRow,
    EventRow,
    GrantRow,
    HourRow,
    LeaseRow,
    ReplayedEvent,
    SegmentRow,
    TransactionRow,
    is_readable,
    try_decode,
)
from steelyard.ledger.hold import Hold
from steelyard.pricing.price_book import CanonicalDocument


class Audit(Protocol):
    """Everything in the books, row by row, at one moment."""

    def transactions(self) -> Iterable[TransactionRow]: ...

    def accounts(self) -> Sequence[AccountRow]: ...

    def grants(self) -> Mapping[str, GrantRow]: ...

    def adjustments(self) -> Mapping[str, AdjustmentRow]: ...

    def chargebacks(self) -> Mapping[str, str]:
        """The documents of what was charged back, by transaction."""
        ...

    def decisions(self) -> Mapping[str, int]:
        """What was decided on suspended events, by event."""
        ...

    def holds(self) -> Iterable[Hold]:
        """The open ones."""
        ...

    def leases(self) -> Sequence[LeaseRow]:
        """All that are there."""
        ...

    def hold_conflicts(self) -> Iterable[str]:
        """Holds that have ended, and are open or have ended otherwise as well."""
        ...

    def budget_windows(self) -> Mapping[tuple[str, str], tuple[int, int]]:
        """What every window of a budget says is reserved and used, by budget and window."""
        ...

    def segments(self) -> Iterable[SegmentRow]:
        """In the order in which they came in."""
        ...

    def event_rows(self, event_ids: Collection[str]) -> Mapping[str, EventRow]: ...

    def event_shares(self, event_ids: Collection[str]) -> SharesByEvent:
        """What departments bear of those of these events that are split."""
        ...

    def event_share_count(self) -> int: ...

    def event_count(self) -> int: ...

    def batch_postings(self, batch: str) -> Sequence[tuple[str, Mapping[str, int]]]:
        """The transactions that a batch of events made: an id, and picos by account."""
        ...

    def positions(self) -> Mapping[str, int]: ...

    def quarantined_hashes(self) -> frozenset[bytes]: ...

    def invoice_audit(self) -> InvoiceAudit: ...

    def period_ends(self) -> Mapping[str, frozenset[str]]:
        """Where closed periods end, by organisation."""
        ...

    def hours(self) -> Iterable[HourRow]:
        """Every row of the hourly sums."""
        ...

    def price_documents(self) -> Mapping[str, CanonicalDocument]:
        """By hash; a document whose bytes do not give its hash is left out."""
        ...

    def tampered_documents(self) -> Sequence[str]:
        """Price versions, invoices and sealed rows that are not what they were."""
        ...

    def document_count(self) -> int: ...

    def tampered_runs(self) -> Sequence[str]:
        """Approved re-ratings whose events are not those that were approved."""
        ...

    def suspended_count(self) -> int:
        """Events in suspense that nobody has decided on."""
        ...

    def quarantined_count(self) -> int:
        """Records in quarantine that nobody has looked at."""
        ...


def verify_books(audit: Audit, *, progress: Callable[[int], None] | None = None) -> list[Check]:
    """Check every invariant; the books are right if every check holds.

    `progress` hears of records as they are done.
    """
    decisions, accounts, grants = audit.decisions(), audit.accounts(), audit.grants()
    replay = ReplayCheck(
        grants=grants,
        adjustments=audit.adjustments(),
        chargebacks=audit.chargebacks(),
        decisions=decisions,
    )
    transactions, notes = TransactionCheck(), CreditNoteCheck(audit.invoice_audit())
    invoices = InvoiceCheck(audit.invoice_audit(), grants)
    for transaction in audit.transactions():
        transactions.see(transaction)
        replay.see_transaction(transaction)
        invoices.see_transaction(transaction)
        notes.see_transaction(transaction)
    documents = audit.price_documents()
    hours, budgets, chain = HourCheck(), BudgetCheck(decisions), ChainCheck()
    checks: list[EventCheck] = [
        RowCheck(audit.period_ends()),
        RatingCheck(documents),
        chain,
        CountCheck(documents),
        hours,
        budgets,
        invoices,
    ]
    log = LogCheck(audit.positions(), audit.quarantined_hashes())
    effects, shares = EffectCheck(), ShareCheck()
    for segment in audit.segments():
        log.see_segment(segment)
        events = _match(segment, audit, log, chain)
        for event in events:
            replay.see(event)
            for check in checks:
                check.see(event)
        shares.see_batch(events, audit.event_shares([event.row.id for event in events]))
        effects.see_batch(segment, events, audit.batch_postings(segment.batch))
        if progress:
            progress(len(segment.bodies))
    hours.compare(audit.hours())
    windows, holds, leases = audit.budget_windows(), list(audit.holds()), audit.leases()
    budgets.compare({window: used for window, (_, used) in windows.items()})
    reserved = {window: count for window, (count, _) in windows.items() if count}
    return [
        transactions.finish(),
        *check_balances(transactions.by_account, accounts),
        replay.finish(holds, leases, accounts),
        check_holds(transactions.by_account, holds, reserved, audit.hold_conflicts(), leases),
        check_leases(transactions.by_account, leases),
        log.finish(audit.event_count()),
        effects.finish(transactions.batch_count),
        *(check.finish() for check in checks),
        notes.finish(),
        shares.finish(audit.event_share_count()),
        *_check_rest(audit),
    ]


def _check_rest(audit: Audit) -> list[Check]:
    return [_check_documents(audit), _check_suspense(audit), _check_quarantine(audit)]


def _match(
    segment: SegmentRow, audit: Audit, log: LogCheck, chain: ChainCheck
) -> list[ReplayedEvent]:
    """The events of a segment, each beside the row that it made."""
    decoded = [try_decode(body) for body in segment.bodies]
    rows = audit.event_rows({event.id for event in decoded if event})
    events: list[ReplayedEvent] = []
    for place, (body, event) in enumerate(zip(segment.bodies, decoded, strict=True)):
        content_hash = hashlib.sha256(body).digest()
        row = rows.get(event.id) if event else None
        is_booked = log.see_record(segment, place, content_hash, row)
        if event and not is_booked and log.is_set_aside(content_hash):
            chain.see_set_aside(event, content_hash)
        if not is_booked or row is None or event is None:
            continue
        if log.see_text(row, is_readable=is_readable(row)):
            events.append(ReplayedEvent(row, event, content_hash))
    return events


def _check_documents(audit: Audit) -> Check:
    claim = "every price book, invoice, grant, adjustment, chargeback, decision and re-rating is as it was"
    check = Check("I6", claim)
    check.compared = audit.document_count()
    for name in (*audit.tampered_documents(), *audit.tampered_runs()):
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
