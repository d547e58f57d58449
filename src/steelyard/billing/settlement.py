"""Settlement: prepared events become postings, exactly once, all of a batch or nothing of it.

Read `settle_batch` first. De-duplication, postings, the ends of the holds and the position in the
log are one unit of work, so a crash at any point leaves nothing half done, and a second worker
that believes itself alone is refused by the stored position.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from steelyard.billing.books import (
    BookedEvent,
    BooksUnit,
    EventOutcome,
    FundingSums,
    HeldFunds,
    QuarantinedEvent,
)
from steelyard.billing.budgets import BudgetUse, settle_budget_draws
from steelyard.billing.event_preparation import PreparedBatch, PreparedEvent, UsagePath
from steelyard.billing.event_shares import EventShare, shares_of
from steelyard.billing.hourly_sums import HOUR_CHARACTERS, UsageSums, read_charges
from steelyard.billing.lease_settlement import LeaseSettlement
from steelyard.ledger.hold import Draw, burn, read_budget_draws, read_draws, write_draws
from steelyard.ledger.transaction import HoldsEnded, Transaction, settle_holds, suspend_holds
from steelyard.metering.event_segment import unpack_bodies
from steelyard.metering.usage import TOKEN_METERS
from steelyard.money import Currency

log = structlog.get_logger()

NEVER_CLOSED = ""


def settle_batch(batch: PreparedBatch, unit: BooksUnit, *, at: datetime) -> Counter[str]:
    """Bring the next records of one log into the books; raises PositionMoved for a zombie."""
    unit.move_position(batch.log_id, before=batch.first_position - 1, after=batch.last_position)
    complaints = {malformed.record: malformed.reason for malformed in batch.malformed}
    fresh, leases = _fresh(batch, unit, complaints=complaints)
    posting = _Posting(batch, unit, at, leases)
    for event, funds in fresh:
        posting.book(event, funds)
    posting.post()
    if complaints:
        unit.quarantine(_quarantined(batch, complaints), at=at)
    counts = Counter(event.outcome for event in posting.booked)
    counts["quarantined"] = len(complaints)
    counts["repeated"] = batch.record_count - len(fresh) - len(complaints)
    return counts


def _fresh(
    batch: PreparedBatch, unit: BooksUnit, *, complaints: dict[int, str]
) -> tuple[list[tuple[PreparedEvent, HeldFunds]], LeaseSettlement]:
    """The events that are new, each with what its hold has set aside, and the leases they name.

    The same id with the same bytes is nothing new; with other bytes it is a forgery or a bug, and is
    kept for a person to look at.
    """
    events, paths = batch.events, batch.paths
    held = unit.lock_held_funds([event.id for event in events])
    named = {event.lease_id for event in events if event.lease_id is not None}
    leases = LeaseSettlement(unit.lock_leases(named) if named else {})
    known = unit.content_hashes([event.id for event in events if event.id not in held])
    places = [(event.source, event.sequence) for event in events]
    taken = unit.places_taken(places)
    must_check_places = bool(taken) or len(set(places)) < len(places)
    fresh: list[tuple[PreparedEvent, HeldFunds]] = []
    for event in events:
        # Taken out, so that a second event of this id finds none.
        funds = held.pop(event.id, None)
        if event.id in known:
            if known[event.id] != event.content_hash:
                complaints[event.record] = f"event {event.id} is in the books with other content"
            continue
        if event.lease_id is not None and funds is None:
            funds = leases.funds_of(event)
        complaint = _complaint_about(event, funds, paths[event.path])
        if must_check_places and complaint is None:
            place = event.source, event.sequence
            complaint = f"another event has the place {place} already" if place in taken else None
            taken.add(place)
        if complaint or funds is None:
            complaints[event.record] = complaint or "no hold"
            continue
        known[event.id] = event.content_hash
        fresh.append((event, funds))
    return fresh, leases


def _complaint_about(event: PreparedEvent, funds: HeldFunds | None, path: UsagePath) -> str | None:
    if event.hold_id != event.id:
        return f"event {event.id} names the hold {event.hold_id}; a hold has the id of its event"
    if funds is None:
        if event.lease_id is not None:
            return f"event {event.id} names the lease {event.lease_id}, which is not there"
        return f"event {event.id} names a hold that is not open: never placed, or released"
    if event.lease_id is not None and not funds.lease_id:
        return f"event {event.id} names a lease, and has a hold of its own"
    if funds.payer_id != path.payer_id or funds.currency != path.currency:
        return f"event {event.id} and its hold name different payers or currencies"
    return None


@dataclass(slots=True)
class _Ended:
    """The holds of one payer that end in one way, added up as they come."""

    payer_id: str
    currency: str
    outcome: EventOutcome
    account: Literal["held", "leased"]
    held: int = 0
    charged: int = 0
    uncovered: int = 0
    back: dict[str, int] = field(default_factory=lambda: defaultdict[str, int](int))

    def transaction(self, *, reference: str, at: datetime) -> Transaction | None:
        back = [Draw(grant_id, picos) for grant_id, picos in self.back.items()]
        currency = Currency(self.currency)
        ended = HoldsEnded(
            self.payer_id,
            currency,
            self.held,
            self.charged,
            self.uncovered,
            back,
            self.account,
        )
        what = self.outcome if self.account == "held" else f"{self.outcome}-leased"
        transaction_id = f"{reference}/{what}/{self.payer_id}/{self.currency}"
        post = settle_holds if self.outcome == "settled" else suspend_holds
        return post(transaction_id, ended, reference=reference, at=at)


class _Posting:
    """Gathers what a batch does to the books, and does it at once."""

    def __init__(
        self, batch: PreparedBatch, unit: BooksUnit, at: datetime, leases: LeaseSettlement
    ) -> None:
        self._batch = batch
        self._unit = unit
        self._at = at
        self._leases = leases
        self._closed_until = unit.closed_until()
        self._ended: dict[tuple[str, str, EventOutcome, Literal["held", "leased"]], _Ended] = {}
        self._row_holds: list[str] = []
        # By path and billed hour and grant: fewer keys than events.
        self._funding: dict[tuple[int, str, str], int] = defaultdict(int)
        self._budget_uses: list[BudgetUse] = []
        # Whether what was added up before the books were asked is still right.
        self._is_as_prepared = True
        self.booked: list[BookedEvent] = []

    def book(self, event: PreparedEvent, funds: HeldFunds) -> None:
        """Add one event, and the end of its hold."""
        billed_at = event.ended_at
        if self._closed_until:
            billed_at = self._billed_at(event)
        if funds.lease_id:
            self._book_leased(event, funds, billed_at)
            return
        self._row_holds.append(event.id)
        if event.complaint is None:
            spent = self._settle(event, funds, billed_at[:HOUR_CHARACTERS])
            booked = BookedEvent(
                event, billed_at, event.picos, spent, funds.budget_draws, "settled"
            )
        else:
            log.error("usage_event.suspended", event_id=event.id, reason=event.complaint)
            self._ended_of(funds, "suspended").held += funds.picos
            booked = BookedEvent(
                event, billed_at, funds.picos, funds.draws, funds.budget_draws, "suspended"
            )
        self.booked.append(booked)
        if funds.budget_draws:
            self._use_budgets(event, funds)

    def post(self) -> None:
        """Write it all: postings, events, sums and budgets."""
        batch, unit, at = self._batch, self._unit, self._at
        if not self.booked:
            # The books keep every record of the log, so that it can be replayed from its start.
            unit.insert_events([], batch, path_ids=(), at=at)
            return
        reference = f"{batch.log_id}/{batch.first_position}"
        ends = (ended.transaction(reference=reference, at=at) for ended in self._ended.values())
        posted = [transaction for transaction in ends if transaction]
        unit.post([*posted, *self._leases.returns(at=at)])
        unit.remove_holds(self._row_holds)
        self._leases.save(unit)
        path_ids = unit.path_ids(batch.paths)
        unit.insert_events(self.booked, batch, path_ids=path_ids, at=at)
        unit.insert_event_shares(self._shares())
        unit.add_to_hours(self._usage(), self._funding_sums(), path_ids=path_ids)
        settle_budget_draws(unit, [*self._budget_uses, *self._leases.budget_uses()], at=at)

    def _billed_at(self, event: PreparedEvent) -> str:
        """When it ended, or when the period in which it did was closed."""
        organisation_id = self._batch.paths[event.path].organisation_id
        closed_until = self._closed_until.get(organisation_id, NEVER_CLOSED)
        if closed_until <= event.ended_at:
            return event.ended_at
        self._is_as_prepared = False
        return closed_until

    def _settle(self, event: PreparedEvent, funds: HeldFunds, billed_hour: str) -> str:
        """What the hold spends of its draws, as text; the rest of them goes back."""
        ended = self._ended_of(funds, "settled")
        held, charged = funds.picos, event.picos
        captured = charged
        if charged > held:
            captured = held
            _warn_not_covered(event, held=held)
        ended.held += held
        ended.charged += charged
        ended.uncovered += charged - captured
        if captured and "," not in funds.draws:
            # Nearly every hold draws on one grant: no need to split a list.
            grant_id = funds.draws.rpartition(":")[0]
            self._funding[event.path, billed_hour, grant_id] += captured
            if held > captured:
                ended.back[grant_id] += held - captured
            return f"{grant_id}:{captured}"
        spent, back = burn(read_draws(funds.draws), picos=captured)
        for draw in spent:
            self._funding[event.path, billed_hour, draw.grant_id] += draw.picos
        for draw in back:
            ended.back[draw.grant_id] += draw.picos
        return write_draws(spent)

    def _book_leased(self, event: PreparedEvent, funds: HeldFunds, billed_at: str) -> None:
        """Spend of the lease what the event costs; its gateway has granted the rest again.

        So a suspended one suspends no more than what its gateway said that it cost.
        """
        is_settled = event.complaint is None
        charged = event.picos if is_settled else funds.stated
        captured, spent = self._leases.spend(event, picos=min(charged, funds.picos))
        ended = self._ended_of(funds, "settled" if is_settled else "suspended")
        ended.held += captured
        if is_settled:
            ended.charged += charged
            ended.uncovered += charged - captured
            if charged > captured:
                _warn_not_covered(event, held=captured)
            for draw in spent:
                self._funding[event.path, billed_at[:HOUR_CHARACTERS], draw.grant_id] += draw.picos
        else:
            log.error("usage_event.suspended", event_id=event.id, reason=event.complaint)
        amount = charged if is_settled else captured
        booked = BookedEvent(
            event, billed_at, amount, write_draws(spent), funds.budget_draws, ended.outcome
        )
        self.booked.append(booked)
        if funds.budget_draws and is_settled:
            self._leases.use(event, charged=charged, tokens=_tokens_of(event))

    def _ended_of(self, funds: HeldFunds, outcome: EventOutcome) -> _Ended:
        account: Literal["held", "leased"] = "leased" if funds.lease_id else "held"
        key = funds.payer_id, funds.currency, outcome, account
        ended = self._ended.get(key)
        if ended is None:
            ended = self._ended[key] = _Ended(*key)
        return ended

    def _use_budgets(self, event: PreparedEvent, funds: HeldFunds) -> None:
        tokens = _tokens_of(event)
        for draw in read_budget_draws(funds.budget_draws):
            used = event.picos if draw.unit == "money" else tokens
            self._budget_uses.append(BudgetUse(draw, 0 if event.complaint else used))

    def _usage(self) -> UsageSums:
        """The prepared sums, or others where the books do not bill each event as it came."""
        rated = sum(event.complaint is None for event in self._batch.events)
        settled = [booked for booked in self.booked if booked.outcome == "settled"]
        if self._is_as_prepared and len(settled) == rated:
            return self._batch.usage
        usage = UsageSums()
        for event, billed_at, *_ in settled:
            lines = read_charges(event.charges)
            usage.add(
                event.path,
                tuple((meter, picos_per_unit) for meter, _, picos_per_unit in lines),
                [count for _, count, _ in lines],
                hour=event.ended_at[:HOUR_CHARACTERS],
                billed_hour=billed_at[:HOUR_CHARACTERS],
            )
        return usage

    def _shares(self) -> list[EventShare]:
        """Who bears the events that are split; of a suspended one nothing is earned yet."""
        return [
            share
            for event, _, picos, _, _, outcome in self.booked
            if event.split is not None
            for share in shares_of(
                event.id, picos=picos if outcome == "settled" else 0, weights=event.split
            )
        ]

    def _funding_sums(self) -> FundingSums:
        paths = self._batch.paths
        sums: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
        for (number, billed_hour, grant_id), picos in self._funding.items():
            path = paths[number]
            owner = path.organisation_id, path.payer_id
            sums[(*owner, billed_hour, grant_id, path.currency)] += picos
        return sums


def _warn_not_covered(event: PreparedEvent, *, held: int) -> None:
    """An upstream did more than it was allowed to: what nothing was held for stands on suspense."""
    log.error("usage_event.not_covered", event_id=event.id, held=held, charged=event.picos)


def _tokens_of(event: PreparedEvent) -> int:
    lines = read_charges(event.charges)
    return sum(count for meter, count, _ in lines if meter in TOKEN_METERS)


def _quarantined(batch: PreparedBatch, complaints: Mapping[int, str]) -> list[QuarantinedEvent]:
    quarantined: list[QuarantinedEvent] = []
    bodies = unpack_bodies(batch.segment)
    for index, reason in sorted(complaints.items()):
        position = batch.first_position + index
        log.error("usage_event.quarantined", log_id=batch.log_id, position=position, reason=reason)
        quarantined.append(QuarantinedEvent(batch.log_id, position, reason, bodies[index]))
    return quarantined
