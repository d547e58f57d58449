"""One segment of a log beside what was made of it: its rows, and what was posted with it."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from steelyard.billing.event_checks import RowCheck
from steelyard.billing.log_checks import unposted
from steelyard.billing.stored_event import (
    EventRow,
    ReplayedEvent,
    SegmentRow,
    is_readable,
    try_decode,
)
from steelyard.ledger.hold import read_draws
from steelyard.money import read_decimal


class SegmentBooks(Protocol):
    """What belongs to a segment."""

    def event_rows(self, event_ids: Collection[str]) -> Mapping[str, EventRow]: ...

    def batch_postings(self, batch: str) -> Sequence[tuple[str, Mapping[str, int]]]: ...

    def quarantined_hashes(self) -> frozenset[bytes]: ...

    def period_ends(self) -> Mapping[str, frozenset[str]]: ...


@dataclass(frozen=True, slots=True)
class SegmentFinding:
    """What is wrong with a segment: how far its postings are from what its events say, how far the
    gateway's amounts are from those that were booked, records that are in no table, and columns
    that are not what the bytes say."""

    batch_picos: int
    amount_picos: int
    records: int
    columns: int

    @property
    def is_clean(self) -> bool:
        return not (self.batch_picos or self.amount_picos or self.records or self.columns)


def look_at_segment(
    segment: SegmentRow, books: SegmentBooks
) -> tuple[SegmentFinding, list[tuple[str, int]]]:
    """The finding, and the places of its events in their sources."""
    events, missing, changed = _match(segment, books)
    rows = RowCheck(books.period_ends())
    amounts = 0
    for event in events:
        rows.see(event)
        amounts += abs(event.row.amount - _amount_of(event))
    rests = unposted(events, books.batch_postings(segment.batch))
    finding = SegmentFinding(
        batch_picos=sum(abs(rest) for rest in rests.values()),
        amount_picos=amounts,
        records=missing + abs(segment.event_count - len(segment.bodies)),
        columns=changed + rows.finish().difference_count,
    )
    return finding, [(event.row.source, event.row.sequence) for event in events]


def _amount_of(event: ReplayedEvent) -> int:
    """What the gateway says that it costs; of a suspended one, what should wait in suspense."""
    said = event.said.data
    stated, held = read_decimal(said.amount), read_decimal(said.held)
    if event.row.outcome == "settled":
        return stated
    if said.lease_id is not None:
        return min(held, stated)
    # A hold may have grown without its gateway's hearing of it.
    return max(held, sum(draw.picos for draw in read_draws(event.row.draws)))


def _match(segment: SegmentRow, books: SegmentBooks) -> tuple[list[ReplayedEvent], int, int]:
    """The events of a segment beside their rows; how many records have come to nothing, and how
    many rows are not of these bytes any more."""
    decoded = [try_decode(body) for body in segment.bodies]
    rows = books.event_rows({event.id for event in decoded if event})
    events: list[ReplayedEvent] = []
    missing = changed = 0
    for place, (body, event) in enumerate(zip(segment.bodies, decoded, strict=True)):
        content_hash = hashlib.sha256(body).digest()
        row = rows.get(event.id) if event else None
        if row and event and (row.segment_id, row.place) == (segment.id, place):
            # What is in bytes that were changed may be anything: it is not read.
            if row.content_hash == content_hash and is_readable(row):
                events.append(ReplayedEvent(row, event, content_hash))
            else:
                changed += 1
        elif not (row and row.content_hash == content_hash):
            missing += content_hash not in books.quarantined_hashes()
    return events, missing, changed
