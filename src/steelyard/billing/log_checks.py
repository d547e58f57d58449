"""Checks of the log: every record of every segment is in the books, and every batch did its own."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from steelyard.billing.invariant_check import Check
from steelyard.billing.stored_event import EventRow, ReplayedEvent, SegmentRow
from steelyard.ledger.hold import read_draws


class LogCheck:
    """I4 and I7: no record of a log is lost, and no event is in the books without one."""

    def __init__(self, positions: Mapping[str, int], quarantined: frozenset[bytes]) -> None:
        claim = "every record of every log is booked, repeated or in quarantine, up to its position"
        self._check = Check("I7", claim)
        self._positions = positions
        self._quarantined = quarantined
        self._ends: dict[str, int] = defaultdict(int)
        self._matched = 0
        self._in_quarantine: set[bytes] = set()

    def see_segment(self, segment: SegmentRow) -> None:
        check, end = self._check, self._ends[segment.log_id]
        check.expect(
            len(segment.bodies) == segment.event_count,
            lambda: (
                f"segment {segment.batch} has {len(segment.bodies)} records, "
                f"not {segment.event_count}"
            ),
        )
        check.expect(
            segment.first_position == end + 1,
            lambda: f"log {segment.log_id} goes on at {segment.first_position}, not {end + 1}",
        )
        self._ends[segment.log_id] = segment.first_position + len(segment.bodies) - 1

    def is_set_aside(self, content_hash: bytes) -> bool:
        """Whether a record with this content is in quarantine."""
        return content_hash in self._quarantined

    def see_record(
        self, segment: SegmentRow, place: int, content_hash: bytes, row: EventRow | None
    ) -> bool:
        """Whether this record is the one that made the row."""
        if row is not None and (row.segment_id, row.place) == (segment.id, place):
            self._matched += 1
            return True
        is_repeat = row is not None and row.content_hash == content_hash
        is_set_apart = content_hash in self._quarantined
        if is_set_apart:
            self._in_quarantine.add(content_hash)
        self._check.expect(
            is_repeat or is_set_apart,
            lambda: (
                f"record {place} of segment {segment.batch} is not in the books"
                + (f": event {row.id}" if row else "")
            ),
        )
        return False

    def see_text(self, row: EventRow, *, is_readable: bool) -> bool:
        """Whether the other checks can read the row."""
        self._check.expect(
            is_readable, lambda: f"event {row.id} has charges or draws that cannot be read"
        )
        return is_readable

    def finish(self, event_count: int) -> Check:
        check = self._check
        check.expect(
            event_count == self._matched,
            lambda: f"{event_count} events are in the books, {self._matched} of them in their logs",
        )
        for log_id in sorted(self._positions.keys() | self._ends.keys()):
            found, expected = self._positions.get(log_id, 0), self._ends.get(log_id, 0)
            check.expect(
                found == expected,
                lambda i=log_id, f=found, e=expected: f"log {i} is at {f}, its segments end at {e}",
            )
        lost = self._quarantined - self._in_quarantine
        check.expect(
            not lost, lambda: f"{len(lost)} records in quarantine are in no log: {min(lost).hex()}"
        )
        return check


class EffectCheck:
    """I4: what a batch posted is what its events say, no more and no less."""

    def __init__(self) -> None:
        claim = "every event has its one effect on the ledger, and every effect has its events"
        self._check = Check("I4", claim)
        self._transactions = 0

    def see_batch(
        self,
        segment: SegmentRow,
        events: Sequence[ReplayedEvent],
        posted: Sequence[tuple[str, Mapping[str, int]]],
    ) -> None:
        """`posted` are the transactions of the batch: an id, and picos by account."""
        self._transactions += len(posted)
        rests = unposted(events, posted)
        for account in sorted(rests):
            rest = rests[account]
            self._check.expect(
                rest == 0,
                lambda a=account, r=rest: (
                    f"batch {segment.batch} posted {-r} picos more to {a} than its events say"
                ),
            )

    def finish(self, transaction_count: int) -> Check:
        self._check.expect(
            transaction_count == self._transactions,
            lambda: (
                f"{transaction_count} transactions of batches, {self._transactions} have events"
            ),
        )
        return self._check


def unposted(
    events: Sequence[ReplayedEvent], posted: Sequence[tuple[str, Mapping[str, int]]]
) -> dict[str, int]:
    """What a batch's events say less what it posted, account by account: zero everywhere."""
    sums: dict[str, int] = defaultdict(int)
    for event in events:
        _expect(sums, event)
    for _, postings in posted:
        for account_id, picos in postings.items():
            sums[_fold(account_id)] -= picos
    return sums


def _expect(sums: dict[str, int], event: ReplayedEvent) -> None:
    row, record = event.row, event.said.data
    currency = record.currency
    if record.lease_id is not None:
        _expect_of_lease(sums, event)
        return
    back = f"back:{record.payer_id}:{currency}"
    if row.outcome == "suspended":
        sums[back] -= row.amount
        sums[f"suspense:{currency}"] += row.amount
        return
    captured = sum(draw.picos for draw in read_draws(row.draws))
    sums[back] -= captured
    sums[f"revenue:{currency}"] += row.amount
    sums[f"suspense:{currency}"] += captured - row.amount


def _fold(account_id: str) -> str:
    """What was held of a payer, and what of it returns to its grants and credit line, count as one.

    A hold may have grown without its gateway's hearing of it. How much of it went back, the sum of
    the open holds tells.
    """
    kind, *owner, currency = account_id.split(":")
    if kind in {"prepaid", "receivable", "held"}:
        return f"back:{owner[0]}:{currency}"
    return account_id


def _expect_of_lease(sums: dict[str, int], event: ReplayedEvent) -> None:
    """A lease pays what an event costs, or what of it is suspended, and gets nothing back."""
    row, record = event.row, event.said.data
    captured = sum(draw.picos for draw in read_draws(row.draws))
    sums[f"leased:{record.payer_id}:{record.currency}"] -= captured
    if row.outcome == "suspended":
        sums[f"suspense:{record.currency}"] += captured
        return
    sums[f"revenue:{record.currency}"] += row.amount
    sums[f"suspense:{record.currency}"] += captured - row.amount
