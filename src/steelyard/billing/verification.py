"""Verification: reads the whole of the books again and checks each invariant by another path.

It trusts no total and no status: sums are made anew from postings, events are decoded and hashed
again, and prices are read from their published bytes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from steelyard.billing.event_rating import EventNotRateable, rate_record
from steelyard.billing.settlement_matrix import MATRIX
from steelyard.ledger.chart import NEVER_NEGATIVE, read_account_id
from steelyard.ledger.hold import Hold
from steelyard.metering.upstream_usage import OpenAIUsage, translate_openai_usage
from steelyard.metering.usage_event import UsageEvent, decode_event, hash_event, write_meters
from steelyard.money import read_decimal

FIRST_PREVIOUS_HASH = "0" * 64
DIFFERENCES_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class PostingRow:
    transaction_id: str
    template: str
    reference: str
    account_id: str
    picos: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event as the books hold it: its bytes, and the columns that were read out of them."""

    id: str
    source: str
    sequence: int
    content_hash: str
    amount: int
    outcome: str
    body: bytes
    line_picos: int


class Audit(Protocol):
    """Everything in the books, row by row, at one moment."""

    def postings(self) -> Iterable[PostingRow]: ...

    def balances(self) -> Mapping[str, int]: ...

    def holds(self) -> Iterable[Hold]: ...

    def events(self) -> Iterable[EventRow]:
        """In the order of source and sequence."""
        ...

    def price_documents(self) -> Mapping[str, Mapping[str, Any]]:
        """By hash; a document whose bytes do not give its hash is left out."""
        ...

    def tampered_prices(self) -> Sequence[str]: ...

    def quarantined_count(self) -> int: ...


@dataclass(slots=True)
class Check:
    """One invariant: what was compared, how often, and every difference that was found."""

    invariant: str
    claim: str
    compared: int = 0
    differences: list[str] = field(default_factory=list[str])
    difference_count: int = 0

    @property
    def holds(self) -> bool:
        return self.difference_count == 0

    def expect(self, is_true: bool, difference: Callable[[], str]) -> None:
        self.compared += 1
        if is_true:
            return
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_SHOWN_MAX:
            self.differences.append(difference())


def verify_books(audit: Audit) -> list[Check]:
    """Check every invariant; the books are right if every check holds."""
    postings = _PostingSums.of(audit.postings())
    holds = {hold.id: hold for hold in audit.holds()}
    events = list(audit.events())
    return [
        _check_sums(postings),
        *_check_balances(postings, audit.balances()),
        _check_holds(postings, holds, events),
        _check_one_effect(postings, events),
        _check_rating(postings, events, audit.price_documents()),
        _check_chain(events),
        _check_counts(events),
        _check_prices(audit),
        _check_quarantine(audit),
    ]


@dataclass(slots=True)
class _PostingSums:
    by_account: dict[str, int]
    by_transaction: dict[str, int]
    revenue: dict[str, int]
    ended_by: dict[str, list[str]]

    @classmethod
    def of(cls, postings: Iterable[PostingRow]) -> "_PostingSums":
        sums = cls(defaultdict(int), defaultdict(int), defaultdict(int), defaultdict(list))
        for posting in postings:
            sums.by_account[posting.account_id] += posting.picos
            sums.by_transaction[posting.transaction_id] += posting.picos
            if posting.template not in {"settle_hold", "suspend_hold"}:
                continue
            if posting.transaction_id not in sums.ended_by[posting.reference]:
                sums.ended_by[posting.reference].append(posting.transaction_id)
            if read_account_id(posting.account_id).kind == "revenue":
                sums.revenue[posting.reference] += posting.picos
        return sums


def _check_sums(postings: _PostingSums) -> Check:
    check = Check("I1", "every transaction, and the whole ledger, sums to zero")
    for transaction_id, picos in postings.by_transaction.items():
        check.expect(picos == 0, lambda t=transaction_id, p=picos: f"{t} sums to {p} picos")
    whole = sum(postings.by_account.values())
    check.expect(whole == 0, lambda: f"the whole ledger sums to {whole} picos")
    return check


def _check_balances(postings: _PostingSums, balances: Mapping[str, int]) -> list[Check]:
    replayed = Check("I6", "every balance is what its postings add up to")
    positive = Check("I2", "no available balance and no held amount is negative")
    for account_id in sorted(postings.by_account.keys() | balances.keys()):
        found, expected = balances.get(account_id, 0), postings.by_account.get(account_id, 0)
        replayed.expect(
            found == expected,
            lambda a=account_id, f=found, e=expected: f"{a} says {f}, its postings say {e}",
        )
        if read_account_id(account_id).kind in NEVER_NEGATIVE:
            positive.expect(expected >= 0, lambda a=account_id, e=expected: f"{a} is at {e}")
    return [positive, replayed]


def _check_holds(
    postings: _PostingSums, holds: Mapping[str, Hold], events: Sequence[EventRow]
) -> Check:
    check = Check("I3", "every hold is open, or has ended in exactly one way; held money is theirs")
    ended = {event.id for event in events}
    open_picos: dict[str, int] = defaultdict(int)
    for hold in holds.values():
        transactions = postings.ended_by.get(hold.id, [])
        is_open = hold.status == "placed"
        if is_open:
            open_picos[f"held:{hold.payer_id}:{hold.amount.currency}"] += hold.amount.picos
        is_right = len(transactions) <= (0 if is_open else 1) and (hold.id in ended) != is_open
        check.expect(
            is_right,
            lambda h=hold, t=transactions: f"hold {h.id} is {h.status}, with {len(t)} ends posted",
        )
    held = {a: p for a, p in postings.by_account.items() if read_account_id(a).kind == "held"}
    for account_id in sorted(held.keys() | open_picos.keys()):
        stands, expected = held.get(account_id, 0), open_picos.get(account_id, 0)
        check.expect(
            stands == expected,
            lambda a=account_id, s=stands, e=expected: f"{a} has {s} picos, open holds {e}",
        )
    return check


def _check_one_effect(postings: _PostingSums, events: Sequence[EventRow]) -> Check:
    check = Check("I4", "one event has one effect on the ledger, and every effect has its event")
    known = {event.id for event in events}
    for event in events:
        count = len(postings.ended_by.get(event.id, []))
        check.expect(
            count == 1 or (count == 0 and event.amount == 0),
            lambda e=event, c=count: f"event {e.id} has {c} effects",
        )
    for reference in postings.ended_by:
        check.expect(reference in known, lambda r=reference: f"hold {r} ended without an event")
    return check


def _check_rating(
    postings: _PostingSums,
    events: Sequence[EventRow],
    documents: Mapping[str, Mapping[str, Any]],
) -> Check:
    check = Check("I5", "event, price book, charge lines and revenue agree to the last pico")
    for event in events:
        if event.outcome != "settled":
            continue
        rated = _rate_again(event, documents)
        amounts = (rated, event.amount, event.line_picos, postings.revenue.get(event.id, 0))
        check.expect(
            len(set(amounts)) == 1,
            lambda e=event, a=amounts: (
                f"event {e.id}: rated {a[0]}, booked {a[1]}, lines {a[2]}, revenue {a[3]}"
            ),
        )
    return check


def _rate_again(event: EventRow, documents: Mapping[str, Mapping[str, Any]]) -> int | str:
    try:
        decoded = decode_event(event.body)
        document = documents.get(decoded.data.price_version)
        if document is None:
            return "without a price version"
        total = sum(line.picos for line in rate_record(decoded.data, document=document))
    except (msgspec.DecodeError, EventNotRateable) as error:
        return str(error)
    stated = read_decimal(decoded.data.amount)
    return total if total == stated else f"{total}, stated as {stated}"


def _check_chain(events: Sequence[EventRow]) -> Check:
    check = Check("I7", "no source has a gap; every event hashes to what its successor says")
    source, sequence, previous_hash = "", 0, FIRST_PREVIOUS_HASH
    for event in events:
        if event.source != source:
            source, sequence, previous_hash = event.source, 0, FIRST_PREVIOUS_HASH
        sequence += 1
        found_hash = hash_event(event.body)
        check.expect(
            found_hash == event.content_hash,
            lambda e=event: f"event {e.id} was changed after it was booked",
        )
        check.expect(
            event.sequence == sequence,
            lambda e=event, s=sequence: f"{e.source}: found {e.sequence}, expected {s}",
        )
        decoded = _try_decode(event)
        check.expect(
            decoded is not None and decoded.previoushash == previous_hash,
            lambda e=event: f"event {e.id} does not follow the one before it",
        )
        sequence, previous_hash = event.sequence, found_hash
    return check


def _check_counts(events: Sequence[EventRow]) -> Check:
    check = Check("I9", "tokens billed are the tokens that the upstream reported")
    for event in events:
        decoded = _try_decode(event)
        # Of an answer that was cut short only the delivered part is billed.
        if decoded is None or MATRIX[decoded.data.end_cause] != "reported":
            continue
        raw = decoded.data.upstream_usage
        reported = (
            translate_openai_usage(msgspec.json.decode(raw, type=OpenAIUsage)) if raw else None
        )
        check.expect(
            reported is not None and write_meters(reported) == decoded.data.meters,
            lambda e=event: f"event {e.id} bills other counts than were reported",
        )
    return check


def _check_prices(audit: Audit) -> Check:
    check = Check("I6", "every published price book still has the hash it was published under")
    tampered = audit.tampered_prices()
    for sha256 in audit.price_documents():
        check.expect(True, lambda s=sha256: s)
    for sha256 in tampered:
        check.expect(False, lambda s=sha256: f"price version {s} was changed")
    return check


def _check_quarantine(audit: Audit) -> Check:
    check = Check("I4", "no event is in quarantine")
    count = audit.quarantined_count()
    check.expect(count == 0, lambda: f"{count} events wait in quarantine for a person to look")
    return check


def _try_decode(event: EventRow) -> UsageEvent | None:
    try:
        return decode_event(event.body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
