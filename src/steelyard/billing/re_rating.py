"""Re-rating: usage that is in the books is priced again, and adjusting entries make the difference.

Nothing is edited. A run is proposed (a dry run that is kept, with a digest of every event's amount
before and after), looked at, and approved by name; the approval prices everything once more and
refuses if anything has changed since. Events keep their bytes and their price version; what they
cost from then on is what the run says.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
import rfc8785

from steelyard.billing.adjustments import Adjusted, billed_from, write_adjustment
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.fund_books import FundUnit
from steelyard.errors import Refusal
from steelyard.ids import new_id
from steelyard.ledger.grant import draw
from steelyard.ledger.hold import Draw, unwind
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command, charge_usage, refund_usage
from steelyard.metering.usage_event import UsageRecord
from steelyard.money import Currency, Money, write_decimal
from steelyard.pricing.price_book import CanonicalDocument
from steelyard.timestamp import write_timestamp

EVENTS_AT_ONCE = 5_000


class ReRatingNotFound(Refusal):
    """There is no such run. 'steelyard re-rate list' shows what there is."""

    code = "re_rating_not_found"


class ReRatingStale(Refusal):
    """Something has changed since this run was proposed. Propose it again, and look again."""

    code = "re_rating_stale"


class ReRatingApproved(Refusal):
    """This run was approved already."""

    code = "re_rating_approved"


class NothingToReRate(Refusal):
    """No event in this scope costs anything else under the new prices."""

    code = "nothing_to_re_rate"


class NotRateableAgain(Refusal):
    """The new prices do not cover all of the usage in this scope."""

    code = "not_rateable_again"


@dataclass(frozen=True, slots=True)
class ReRatingScope:
    """Which events to price again: by the time at which they ended, and what they were priced by."""

    organisation_id: str
    start: datetime
    end: datetime
    old_version: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class ScopedEvent:
    """A settled event with what it costs today; `draws` are what it was paid from."""

    id: str
    department_id: str
    payer_id: str
    amount: int
    draws: Sequence[Draw]
    is_refunded: bool
    record: UsageRecord


@dataclass(frozen=True, slots=True)
class ReRatedEvent:
    """An event that costs something else from now on."""

    event: ScopedEvent
    after: int

    @property
    def difference(self) -> int:
        """Positive where it gets dearer."""
        return self.after - self.event.amount


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """What re-rating changes for one model in one department."""

    department_id: str
    model: str
    events: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class ReRatingRun:
    """A proposed run; `canonical` is what was looked at, and what an approval must find again."""

    id: str
    canonical: str
    proposed_at: datetime
    proposed_by: str
    approved_at: datetime | None = None
    approved_by: str | None = None


class ReRatingUnit(FundUnit, Protocol):
    """One unit of work on re-rating."""

    def events_in_scope(self, scope: ReRatingScope) -> Iterable[ScopedEvent]:
        """In the order of their ids."""
        ...

    def insert_run(self, run: ReRatingRun) -> None: ...

    def find_run(self, run_id: str) -> ReRatingRun | None: ...

    def runs(self) -> list[ReRatingRun]:
        """The oldest first."""
        ...

    def approve_run(self, run_id: str, *, at: datetime, actor: str) -> None: ...

    def insert_re_rated(self, run_id: str, events: Sequence[ReRatedEvent]) -> None: ...


class ReRatingBooks(Protocol):
    """The books, in units of work on re-rating."""

    def write(self) -> AbstractContextManager[ReRatingUnit]: ...


class _Evaluated(msgspec.Struct, frozen=True):
    """A record as it would be if it had been priced by another version."""

    price_version: str
    model_served: str
    currency: str
    admitted_at: str
    meters: dict[str, str]
    batch_id: str | None


def propose_re_rating(
    books: ReRatingBooks,
    scope: ReRatingScope,
    *,
    new_version: str,
    documents: Mapping[str, CanonicalDocument],
    command: Command,
) -> tuple[ReRatingRun, list[DifferenceRow]]:
    """Price a scope again and keep the outcome for approval; no money moves.

    Raises NothingToReRate and NotRateableAgain.
    """
    with books.write() as unit:
        changed = _price_again(unit, scope, new_version=new_version, documents=documents)
        if not changed:
            raise NothingToReRate
        rows = difference_rows(changed)
        document = _document(scope, new_version, changed, rows, reason=command.reason)
        canonical = rfc8785.dumps(document).decode()
        run = ReRatingRun(new_id(), canonical, command.at, command.actor)
        unit.insert_run(run)
    return run, rows


def approve_re_rating(
    books: ReRatingBooks,
    run_id: str,
    *,
    documents: Mapping[str, CanonicalDocument],
    command: Command,
) -> list[Adjusted]:
    """Book the adjusting entries of a run, each event once; raises ReRatingStale."""
    with books.write() as unit:
        unit.wait_turn(run_id)
        run = unit.find_run(run_id)
        if run is None:
            raise ReRatingNotFound(f"there is no run {run_id!r}")
        if run.approved_at is not None:
            raise ReRatingApproved(f"{run.approved_by} approved the run {run_id} already")
        proposed = read_run(run)
        changed = _price_again(
            unit, proposed.scope, new_version=proposed.new_version, documents=documents
        )
        if _digest(changed) != proposed.digest:
            raise ReRatingStale
        adjusted = _adjust(unit, run_id, proposed.scope, changed, command)
        unit.insert_re_rated(run_id, changed)
        unit.approve_run(run_id, at=command.at, actor=command.actor)
    return adjusted


@dataclass(frozen=True, slots=True)
class ProposedRun:
    """What a run's canonical text says."""

    scope: ReRatingScope
    new_version: str
    digest: str
    rows: Sequence[DifferenceRow]
    reason: str


class _ScopeText(msgspec.Struct, frozen=True):
    organisation_id: str
    start: datetime
    end: datetime
    old_version: str | None
    model: str | None


class _RowText(msgspec.Struct, frozen=True):
    department_id: str
    model: str
    events: int
    before_picos: str
    after_picos: str


class _RunText(msgspec.Struct, frozen=True):
    scope: _ScopeText
    new_version: str
    digest: str
    differences: list[_RowText]
    reason: str


def read_run(run: ReRatingRun) -> ProposedRun:
    """The run that `propose_re_rating` wrote."""
    text = msgspec.json.decode(run.canonical, type=_RunText)
    return ProposedRun(
        scope=ReRatingScope(
            text.scope.organisation_id,
            text.scope.start,
            text.scope.end,
            text.scope.old_version,
            text.scope.model,
        ),
        new_version=text.new_version,
        digest=text.digest,
        rows=[
            DifferenceRow(
                row.department_id,
                row.model,
                row.events,
                int(row.before_picos),
                int(row.after_picos),
            )
            for row in text.differences
        ],
        reason=text.reason,
    )


def difference_rows(changed: Sequence[ReRatedEvent]) -> list[DifferenceRow]:
    """What a run changes, by department and model."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for item in changed:
        row = sums[item.event.department_id, item.event.record.model_served]
        row[0] += 1
        row[1] += item.event.amount
        row[2] += item.after
    return [DifferenceRow(*key, *row) for key, row in sorted(sums.items())]


def _price_again(
    unit: ReRatingUnit,
    scope: ReRatingScope,
    *,
    new_version: str,
    documents: Mapping[str, CanonicalDocument],
) -> list[ReRatedEvent]:
    """The events of a scope that cost something else; refunded ones are left as they are."""
    rating = BatchRating(documents)
    changed: list[ReRatedEvent] = []
    part: list[ScopedEvent] = []
    for event in unit.events_in_scope(scope):
        if not event.is_refunded:
            part.append(event)
        if len(part) == EVENTS_AT_ONCE:
            changed += _changed(part, rating, new_version)
            part = []
    return changed + _changed(part, rating, new_version)


def _changed(
    events: Sequence[ScopedEvent], rating: BatchRating, new_version: str
) -> list[ReRatedEvent]:
    records = (event.record for event in events)
    rated = rating.rate(
        [
            _Evaluated(new_version, r.model_served, r.currency, r.admitted_at, r.meters, r.batch_id)
            for r in records
        ]
    )
    changed: list[ReRatedEvent] = []
    for event, found in zip(events, rated, strict=True):
        if found.complaint:
            raise NotRateableAgain(f"event {event.id}: {found.complaint}")
        if found.picos != event.amount:
            changed.append(ReRatedEvent(event, found.picos))
    return changed


def _document(
    scope: ReRatingScope,
    new_version: str,
    changed: Sequence[ReRatedEvent],
    rows: Sequence[DifferenceRow],
    *,
    reason: str,
) -> dict[str, Any]:
    return {
        "scope": {
            "organisation_id": scope.organisation_id,
            "start": write_timestamp(scope.start),
            "end": write_timestamp(scope.end),
            "old_version": scope.old_version,
            "model": scope.model,
        },
        "new_version": new_version,
        "digest": _digest(changed),
        "differences": [
            {
                "department_id": row.department_id,
                "model": row.model,
                "events": row.events,
                "before_picos": str(row.before),
                "after_picos": str(row.after),
            }
            for row in rows
        ],
        "reason": reason,
        "schema": "steelyard.re-rating/v1",
    }


def _digest(changed: Sequence[ReRatedEvent]) -> str:
    digest = hashlib.sha256()
    for item in changed:
        digest.update(f"{item.event.id}:{item.event.amount}:{item.after}\n".encode())
    return digest.hexdigest()


def _adjust(
    unit: ReRatingUnit,
    run_id: str,
    scope: ReRatingScope,
    changed: Sequence[ReRatedEvent],
    command: Command,
) -> list[Adjusted]:
    """One adjusting entry for each department and payer, and each direction."""
    billed_at = billed_from(unit, scope.organisation_id, at=command.at)
    groups: dict[tuple[str, str, str, bool], list[ReRatedEvent]] = defaultdict(list)
    for item in changed:
        record = item.event.record
        groups[
            item.event.payer_id, item.event.department_id, record.currency, item.difference < 0
        ].append(item)
    adjusted: list[Adjusted] = []
    for number, ((payer_id, department_id, currency, _), items) in enumerate(
        sorted(groups.items()), start=1
    ):
        amount = Money(-sum(item.difference for item in items), Currency(currency))
        entry = Adjusted(
            kind="re_rating",
            organisation_id=scope.organisation_id,
            department_id=department_id,
            payer_id=payer_id,
            amount=amount,
            reference=run_id,
            billed_at=billed_at,
        )
        part = Command(f"{run_id}.{number}", command.at, command.actor, command.reason)
        adjusted.append(_book(unit, entry, items, part))
    return adjusted


def _book(
    unit: ReRatingUnit, entry: Adjusted, items: Sequence[ReRatedEvent], command: Command
) -> Adjusted:
    """Give back to where each event was paid from, or charge in the order of burning."""
    currency, payer_id = entry.amount.currency, entry.payer_id
    if entry.amount.picos > 0:
        draws = _returned(items)
        # What an event cost beyond its hold was never taken, and cannot be given back.
        amount = Money(sum(part.picos for part in draws), currency)
        make = refund_usage
    else:
        balances, credit = unit.lock_funds([payer_id], currency=currency)[payer_id]
        found = draw(balances, picos=-entry.amount.picos, credit_picos=credit, at=command.at)
        if found is None:
            missing = write_decimal(-entry.amount.picos)
            raise InsufficientFunds(f"the balance does not cover {missing} {currency} more")
        draws, amount = found, entry.amount
        make = charge_usage
    booked = Adjusted(
        entry.kind,
        entry.organisation_id,
        entry.department_id,
        payer_id,
        amount,
        entry.reference,
        entry.billed_at,
    )
    transaction = make(
        draws, payer_id=payer_id, currency=currency, reference=entry.reference, command=command
    )
    write_adjustment(unit, transaction, booked, draws, command)
    return booked


def _returned(items: Sequence[ReRatedEvent]) -> list[Draw]:
    returned: dict[str, int] = defaultdict(int)
    for item in items:
        paid = sum(part.picos for part in item.event.draws)
        for part in unwind(item.event.draws, picos=min(paid, -item.difference)):
            returned[part.grant_id] += part.picos
    return [Draw(grant_id, picos) for grant_id, picos in sorted(returned.items())]
