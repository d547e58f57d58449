"""Reconciliation, always on: whether the books still agree with themselves, a little at a time.

`verify` reads all of the books. This reads whole what is small (accounts, holds, leases, positions)
and of what is large (the log and its events) what is new, and then a piece of what is old, round and
round. Sums over large tables come seldom. Read `Reconciliation.look` first.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from steelyard.billing.reconciled_segment import SegmentBooks, SegmentFinding, look_at_segment
from steelyard.billing.sequence_watch import SequenceWatch
from steelyard.billing.stored_event import AccountRow, SegmentRow

log = structlog.get_logger()

# Money that two places of the books tell differently, or that waits for a person, by check.
MONEY_CHECKS: Final = (
    "ledger",
    "floors",
    "holds",
    "unresolved_holds",
    "leases",
    "batches",
    "amounts",
    "suspense",
    "postings",
    "events",
    "hours",
)
# Records whose money nobody knows.
RECORD_CHECKS: Final = (
    "positions",
    "gaps",
    "records",
    "columns",
    "sequences",
    "quarantine",
)
RECORDS_AT_ONCE: Final = 5_000
SEGMENTS_AGAIN_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class HoldFigures:
    """How many holds have a row in the books, how many of them are open for too long, and what
    those are of."""

    open_count: int
    unresolved_count: int
    unresolved_picos: int


class ReconciledBooks(SegmentBooks, Protocol):
    """The books at one moment, as far as reconciliation reads them."""

    def accounts(self) -> Sequence[AccountRow]: ...

    def held_by_account(self) -> Mapping[str, int]:
        """What the open holds add up to."""
        ...

    def leased_by_account(self) -> Mapping[str, int]:
        """What is left of the leases."""
        ...

    def hold_figures(self) -> "HoldFigures": ...

    def suspended_picos(self) -> int:
        """What waits in suspense for a decision."""
        ...

    def quarantined_count(self) -> int: ...

    def positions(self) -> Mapping[str, int]: ...

    def log_end(self, log_id: str) -> int:
        """The last position of the newest segment of a log; 0 without any."""
        ...

    def segment_after(self, log_id: str, position: int) -> SegmentRow | None: ...

    def sequences(self) -> Mapping[str, tuple[int, int]]:
        """How many events each source has in the books, and its highest sequence."""
        ...

    def sequences_of(self, source: str) -> Sequence[int]:
        """In order."""
        ...

    def quarantined_places(self) -> Collection[tuple[str, int]]:
        """Source and sequence of the records in quarantine that say them."""
        ...

    def posted_by_account(self) -> Mapping[str, int]:
        """What all postings add up to; reads all of them."""
        ...

    def settled_by_currency(self) -> Mapping[str, tuple[int, int, int]]:
        """What settled events cost, what settlement has posted to revenue for it, and what the
        hourly sums say; reads all of them."""
        ...


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What one look found: picos and records that nothing explains, by check; all of it zero is
    what should be. `records_behind` have come in and were not looked at yet. `balances` are those
    of all accounts of a kind and currency together."""

    picos: Mapping[str, int]
    records: Mapping[str, int]
    records_behind: int
    holds: HoldFigures
    balances: Mapping[tuple[str, str], int]
    looks: int

    @property
    def unexplained_picos(self) -> int:
        return sum(self.picos.values())

    @property
    def unexplained_records(self) -> int:
        return sum(self.records.values())


NOTHING_SEEN: Final = Reconciled(
    dict.fromkeys(MONEY_CHECKS, 0),
    dict.fromkeys(RECORD_CHECKS, 0),
    records_behind=0,
    holds=HoldFigures(0, 0, 0),
    balances={},
    looks=0,
)


@dataclass(slots=True)
class _Log:
    """How far one log was looked at: `fresh` is where new segments begin, `patrol` walks round
    everything before that."""

    fresh: int
    patrol: int = 0


@dataclass(slots=True)
class Reconciliation:
    """Looks at the books again and again, and remembers what it found until it is mended."""

    open_books: Callable[[], AbstractContextManager[ReconciledBooks]]
    records_at_once: int = RECORDS_AT_ONCE
    last: Reconciled = NOTHING_SEEN
    _logs: dict[str, _Log] = field(default_factory=dict[str, _Log])
    _segments: dict[tuple[str, int], SegmentFinding] = field(
        default_factory=dict[tuple[str, int], SegmentFinding]
    )
    _gaps: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    _sequences: SequenceWatch = field(default_factory=SequenceWatch)
    _deep: dict[str, int] = field(default_factory=dict[str, int])

    def look(self, *, is_deep: bool = False) -> Reconciled:
        """One look; a deep one adds large tables up. Raises BooksUnavailable."""
        with self.open_books() as books:
            positions = books.positions()
            self._begin_logs(books, positions)
            self._look_again(books)
            budget = self._look_at_fresh(books, self.records_at_once)
            self._patrol(books, budget)
            accounts, holds = books.accounts(), books.hold_figures()
            if is_deep:
                self._deep = _add_up(books, accounts)
            picos = self._of_segments() | _small(books, accounts, holds) | self._deep
            records = self._records(books, positions)
            behind = sum(books.log_end(log_id) - one.fresh for log_id, one in self._logs.items())
        found = Reconciled(
            {check: picos.get(check, 0) for check in MONEY_CHECKS},
            {check: records[check] for check in RECORD_CHECKS},
            records_behind=max(0, behind),
            holds=holds,
            balances=_by_kind(accounts),
            looks=self.last.looks + 1,
        )
        self._tell(found)
        self.last = found
        return found

    def _begin_logs(self, books: ReconciledBooks, positions: Mapping[str, int]) -> None:
        """What is there at the first look is old; a log that comes later is new."""
        is_first = not self.last.looks
        if is_first:
            self._sequences.begin(books)
        for log_id in positions:
            if log_id not in self._logs:
                self._logs[log_id] = _Log(books.log_end(log_id) if is_first else 0)

    def _tell(self, found: Reconciled) -> None:
        """One line when something changes, and not one for each look."""
        if (self.last.picos, self.last.records) == (found.picos, found.records):
            return
        wrong = {name: n for name, n in (*found.picos.items(), *found.records.items()) if n}
        if wrong:
            log.error("books.unexplained", **wrong, examples=self._examples())
        else:
            log.info("books.explained")

    def _examples(self) -> list[str]:
        segments = [f"batch {log}/{at}: {found}" for (log, at), found in self._segments.items()]
        gaps = [f"log {log} has no records after {at}" for log, at in self._gaps]
        return [*segments, *gaps, *self._sequences.missing()][:10]

    def _look_again(self, books: ReconciledBooks) -> None:
        for log_id, first in list(self._segments)[:SEGMENTS_AGAIN_MAX]:
            segment = books.segment_after(log_id, first - 1)
            if segment is not None and segment.first_position == first:
                self._note(segment, books)

    def _look_at_fresh(self, books: ReconciledBooks, budget: int) -> int:
        """Look at what came in since the last time; returns what is left of the budget."""
        for log_id, one in self._logs.items():
            while budget > 0 and (segment := books.segment_after(log_id, one.fresh)):
                self._note_gap(log_id, one.fresh, segment)
                for source, sequence in self._note(segment, books):
                    self._sequences.see(source, sequence)
                one.fresh = _end_of(segment)
                budget -= segment.event_count
        return budget

    def _patrol(self, books: ReconciledBooks, budget: int) -> None:
        """Go over what is old: at least one segment of each log, so that a busy one is not left."""
        for log_id, one in self._logs.items():
            left = max(1, budget // len(self._logs))
            while left > 0:
                segment = books.segment_after(log_id, one.patrol)
                if segment is None or segment.first_position > one.fresh:
                    self._note_gap(log_id, one.patrol, segment, until=one.fresh)
                    one.patrol = 0
                    break
                self._note_gap(log_id, one.patrol, segment)
                self._note(segment, books)
                one.patrol = _end_of(segment)
                left -= segment.event_count

    def _note(self, segment: SegmentRow, books: ReconciledBooks) -> list[tuple[str, int]]:
        """Look at a segment; returns the places of its events in their sources."""
        finding, places = look_at_segment(segment, books)
        key = segment.log_id, segment.first_position
        if finding.is_clean:
            self._segments.pop(key, None)
        else:
            self._segments[key] = finding
        return places

    def _note_gap(
        self, log_id: str, after: int, segment: SegmentRow | None, *, until: int | None = None
    ) -> None:
        """Between two segments nothing is missing; nor is it after the last, up to a position."""
        if segment is not None and (until is None or segment.first_position <= until):
            missing = segment.first_position - 1 - after
        else:
            missing = (until or after) - after
        if missing:
            self._gaps[log_id, after] = missing
        else:
            self._gaps.pop((log_id, after), None)

    def _of_segments(self) -> dict[str, int]:
        return {
            "batches": sum(found.batch_picos for found in self._segments.values()),
            "amounts": sum(found.amount_picos for found in self._segments.values()),
        }

    def _records(self, books: ReconciledBooks, positions: Mapping[str, int]) -> dict[str, int]:
        return {
            "positions": sum(
                abs(positions.get(log_id, 0) - books.log_end(log_id)) for log_id in self._logs
            ),
            "gaps": sum(abs(size) for size in self._gaps.values()),
            "records": sum(found.records for found in self._segments.values()),
            "columns": sum(found.columns for found in self._segments.values()),
            "sequences": self._sequences.gaps(books),
            "quarantine": books.quarantined_count(),
        }


def _small(
    books: ReconciledBooks, accounts: Sequence[AccountRow], holds: HoldFigures
) -> dict[str, int]:
    """What can be read whole each time."""
    whole: dict[str, int] = defaultdict(int)
    below = 0
    for account in accounts:
        whole[account.id.rpartition(":")[2]] += account.balance
        if account.floor is not None:
            below += max(0, account.floor - account.balance)
    return {
        "ledger": sum(abs(picos) for picos in whole.values()),
        "floors": below,
        "holds": _apart(_of_kind(accounts, "held"), books.held_by_account()),
        "unresolved_holds": holds.unresolved_picos,
        "leases": _apart(_of_kind(accounts, "leased"), books.leased_by_account()),
        "suspense": books.suspended_picos(),
    }


def _add_up(books: ReconciledBooks, accounts: Sequence[AccountRow]) -> dict[str, int]:
    """Sums over large tables, each by two ways."""
    sums = books.settled_by_currency().values()
    stands = {account.id: account.balance for account in accounts}
    return {
        "postings": _apart(stands, books.posted_by_account()),
        "events": sum(abs(cost - posted) for cost, posted, _ in sums),
        "hours": sum(abs(cost - hours) for cost, _, hours in sums),
    }


def _apart(ones: Mapping[str, int], others: Mapping[str, int]) -> int:
    """How far two tellings of the same balances are apart, all accounts together."""
    return sum(abs(ones.get(name, 0) - others.get(name, 0)) for name in ones.keys() | others.keys())


def _of_kind(accounts: Sequence[AccountRow], kind: str) -> dict[str, int]:
    return {a.id: a.balance for a in accounts if a.id.startswith(f"{kind}:")}


def _by_kind(accounts: Sequence[AccountRow]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for account in accounts:
        sums[account.kind, account.id.rpartition(":")[2]] += account.balance
    return sums


def _end_of(segment: SegmentRow) -> int:
    return segment.first_position + segment.event_count - 1
