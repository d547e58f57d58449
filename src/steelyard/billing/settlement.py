"""Settlement: events from a log become postings, exactly once, all of a batch or nothing of it.

Read `settle_batch` first. De-duplication, rating, posting, the end of the hold and the position in
the log are one unit of work, so a crash at any point leaves nothing half done, and a second worker
that believes itself alone is refused by the stored position.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import structlog

from steelyard.billing.books import BooksUnit, Place, QuarantinedEvent, RatedEvent
from steelyard.billing.event_content import EventMalformed, check_content
from steelyard.billing.event_rating import EventNotRateable, rate_record
from steelyard.eventlog.log import LogRecord
from steelyard.ledger.hold import Hold
from steelyard.ledger.transaction import Transaction, settle_hold, suspend_hold
from steelyard.metering.usage_event import UsageEvent, decode_event, hash_event
from steelyard.money import Money, read_decimal

log = structlog.get_logger()

PriceDocuments = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Delivery:
    record: LogRecord
    content_hash: str
    event: UsageEvent

    @property
    def place(self) -> Place:
        return self.event.source, int(self.event.sequence)


def settle_batch(
    records: Sequence[LogRecord],
    unit: BooksUnit,
    *,
    log_id: str,
    prices: PriceDocuments,
    at: datetime,
) -> Counter[str]:
    """Bring the next records of one log into the books; raises PositionMoved for a zombie."""
    quarantined: list[QuarantinedEvent] = []
    fresh = _fresh_deliveries(records, unit, log_id=log_id, quarantined=quarantined)
    holds = unit.read_holds({delivery.event.data.hold_id for delivery in fresh})
    rated: list[RatedEvent] = []
    for delivery in fresh:
        hold = holds.get(delivery.event.data.hold_id)
        complaint = _complaint_about(hold, delivery.event)
        if complaint:
            quarantined.append(_quarantine(delivery.record, complaint, log_id=log_id))
        else:
            rated.append(_rate(delivery, prices))
    _post(rated, holds, unit, at=at)
    if quarantined:
        unit.quarantine(quarantined, at=at)
    unit.move_position(log_id, before=records[0].position - 1, after=records[-1].position)
    counts = Counter(event.outcome for event in rated)
    counts["quarantined"] = len(quarantined)
    counts["repeated"] = len(records) - len(rated) - len(quarantined)
    return counts


def _fresh_deliveries(
    records: Sequence[LogRecord],
    unit: BooksUnit,
    *,
    log_id: str,
    quarantined: list[QuarantinedEvent],
) -> list[_Delivery]:
    """Decode and de-duplicate: the same id with the same bytes is nothing new, with other bytes
    it is a forgery or a bug, and is kept for a person to look at."""
    deliveries: list[_Delivery] = []
    for record in records:
        try:
            event = decode_event(record.body)
            check_content(event)
        except (msgspec.DecodeError, msgspec.ValidationError, EventMalformed) as error:
            quarantined.append(_quarantine(record, f"not a usage event: {error}", log_id=log_id))
            continue
        deliveries.append(_Delivery(record, hash_event(record.body), event))
    known = unit.content_hashes({delivery.event.id for delivery in deliveries})
    taken = unit.places_taken({delivery.place for delivery in deliveries})
    fresh: list[_Delivery] = []
    for delivery in deliveries:
        known_hash = known.get(delivery.event.id)
        if known_hash is None and delivery.place in taken:
            complaint = f"another event has the place {delivery.place} already"
            quarantined.append(_quarantine(delivery.record, complaint, log_id=log_id))
        elif known_hash is None:
            known[delivery.event.id] = delivery.content_hash
            taken.add(delivery.place)
            fresh.append(delivery)
        elif known_hash != delivery.content_hash:
            complaint = f"event {delivery.event.id} is in the books with other content"
            quarantined.append(_quarantine(delivery.record, complaint, log_id=log_id))
    return fresh


def _complaint_about(hold: Hold | None, event: UsageEvent) -> str | None:
    if hold is None:
        return f"event {event.id} names the hold {event.data.hold_id}, which was never placed"
    if hold.status != "placed":
        return f"event {event.id} names the hold {hold.id}, which is {hold.status} already"
    if hold.payer_id != event.data.payer_id or hold.amount.currency != event.data.currency:
        return f"event {event.id} and its hold name different payers or currencies"
    return None


def _rate(delivery: _Delivery, prices: PriceDocuments) -> RatedEvent:
    """Rate on our own; an amount that differs from the gateway's waits in suspense."""
    record = delivery.event.data
    lines = []
    try:
        document = prices.get(record.price_version)
        if document is None:
            raise EventNotRateable(f"no price version {record.price_version} was published")
        lines = rate_record(record, document=document)
        total = sum(line.picos for line in lines)
        is_agreed = total == read_decimal(record.amount)
        complaint = None if is_agreed else f"we rate {total} picos, the gateway {record.amount}"
    except EventNotRateable as error:
        complaint = str(error)
    if complaint:
        log.error("usage_event.suspended", event_id=delivery.event.id, reason=complaint)
    return RatedEvent(
        event=delivery.event,
        content_hash=delivery.content_hash,
        body=delivery.record.body,
        lines=lines,
        outcome="suspended" if complaint else "settled",
    )


def _post(
    rated: Sequence[RatedEvent], holds: Mapping[str, Hold], unit: BooksUnit, *, at: datetime
) -> None:
    if not rated:
        return
    ended = (_end_hold(event, holds[event.event.data.hold_id], at=at) for event in rated)
    unit.post([transaction for transaction in ended if transaction])
    unit.insert_events(rated, at=at)
    for status in ("settled", "suspended"):
        hold_ids = {event.event.data.hold_id for event in rated if event.outcome == status}
        unit.close_holds(hold_ids, status=status)


def _end_hold(rated: RatedEvent, hold: Hold, *, at: datetime) -> Transaction | None:
    if rated.outcome == "suspended":
        return suspend_hold(hold, at=at)
    charge = Money(sum(line.picos for line in rated.lines), hold.amount.currency)
    return settle_hold(hold, charge, at=at)


def _quarantine(record: LogRecord, reason: str, *, log_id: str) -> QuarantinedEvent:
    log.error("usage_event.quarantined", log_id=log_id, position=record.position, reason=reason)
    return QuarantinedEvent(
        content_hash=hash_event(record.body),
        log_id=log_id,
        position=record.position,
        reason=reason,
        body=record.body,
    )
