"""Checks of the events, one after the other: each check sees every event, and then concludes."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from steelyard.billing.event_rating import EventNotRateable, priced_among, rate_record
from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.billing.invariant_check import Check
from steelyard.billing.settlement_matrix import MATRIX
from steelyard.billing.stored_event import HourRow, ReplayedEvent
from steelyard.ledger.hold import read_budget_draws, read_draws
from steelyard.metering.upstream_usage import read_upstream_usage
from steelyard.metering.usage import CALL, ENGINE_TIME, INPUT_TEXT, ITEM, tokens_within
from steelyard.metering.usage_event import UsageEvent, write_meters
from steelyard.money import read_decimal
from steelyard.pricing.price_book import CanonicalDocument

FIRST_PREVIOUS_HASH = "0" * 64


class EventCheck(Protocol):
    """An invariant over all events."""

    def see(self, event: ReplayedEvent) -> None: ...

    def finish(self) -> Check: ...


class RowCheck:
    """I4: the columns of an event, by which it is billed, are what its bytes say."""

    def __init__(self, period_ends: Mapping[str, frozenset[str]]) -> None:
        self._check = Check("I4", "every event is booked as its bytes say, whose hash it has")
        self._period_ends = period_ends

    def see(self, event: ReplayedEvent) -> None:
        row, said = event.row, event.said
        record = said.data
        path = (
            record.organisation_id,
            record.department_id,
            record.project_id or "",
            record.key_id,
            record.payer_id,
            record.model_served,
            record.upstream,
            record.currency,
            record.price_version,
        )
        pairs = {
            "content hash": (row.content_hash, event.content_hash),
            "source": (row.source, said.source),
            "sequence": (str(row.sequence), said.sequence),
            "path": (tuple(row.path), path),
            "end": (row.ended_at, record.ended_at),
            "hold": (row.id, record.hold_id),
        }
        for what, (booked, expected) in pairs.items():
            self._check.expect(
                booked == expected,
                lambda w=what, b=booked, e=expected: (
                    f"event {row.id}: {w} is {b}, its bytes say {e}"
                ),
            )
        is_late = row.billed_at > row.ended_at and row.billed_at in self._period_ends.get(
            record.organisation_id, frozenset()
        )
        self._check.expect(
            row.billed_at == row.ended_at or is_late,
            lambda: f"event {row.id} is billed at {row.billed_at}, and ended at {row.ended_at}",
        )

    def finish(self) -> Check:
        return self._check


class RatingCheck:
    """I5: every settled event costs what its price version says, by a rating of its own."""

    def __init__(self, documents: Mapping[str, CanonicalDocument]) -> None:
        self._check = Check("I5", "event, price book and charge lines agree to the last pico")
        self._documents = documents

    def see(self, event: ReplayedEvent) -> None:
        row = event.row
        if row.outcome != "settled":
            return
        rated = self._rate_again(event.said)
        lines = sum(count * picos for _, count, picos in json.loads(row.charges))
        amounts = rated, row.amount, lines
        self._check.expect(
            len(set(amounts)) == 1,
            lambda: f"event {row.id}: rated {rated}, booked {row.amount}, lines {lines}",
        )

    def finish(self) -> Check:
        return self._check

    def _rate_again(self, event: UsageEvent) -> int | str:
        record = event.data
        try:
            document = self._documents.get(record.price_version)
            if document is None:
                return "without a price version"
            total = sum(line.picos for line in rate_record(record, document=document))
        except EventNotRateable as error:
            return str(error)
        stated = read_decimal(record.amount)
        return total if total == stated else f"{total}, stated as {stated}"


class _Link(NamedTuple):
    """An event in the chain of its source: the hash that it names, and its own."""

    event_id: str
    previous_hash: str
    content_hash: str


class ChainCheck:
    """I7: no source has a gap. A log may bring the events of a source in any order.

    An event in quarantine moved no money, and is a link of the chain all the same.
    """

    def __init__(self) -> None:
        self._check = Check("I7", "no source has a gap; every event names the hash before it")
        # By source: the last sequence of the chain so far, and its hash.
        self._ends: dict[str, tuple[int, str]] = defaultdict(lambda: (0, FIRST_PREVIOUS_HASH))
        # Those that came before one that they follow: a few, or a gap.
        self._early: dict[str, dict[int, _Link]] = defaultdict(dict)
        # What a record in quarantine says of its place may be a lie: it fits, or it is passed over.
        self._set_aside: dict[tuple[str, int], list[_Link]] = defaultdict(list)

    def see(self, event: ReplayedEvent) -> None:
        source, sequence = event.row.source, event.row.sequence
        link = _Link(event.row.id, event.said.previoushash, event.content_hash.hex())
        self._early[source][sequence] = link
        self._go_on(source)

    def see_set_aside(self, said: UsageEvent, content_hash: bytes) -> None:
        """A record that is in quarantine."""
        if said.sequence.isascii() and said.sequence.isdigit():
            link = _Link(said.id, said.previoushash, content_hash.hex())
            self._set_aside[said.source, int(said.sequence)].append(link)

    def finish(self) -> Check:
        for source, early in self._early.items():
            while early and self._pass_over(source):
                self._go_on(source)
            expected, found = self._ends[source][0] + 1, min(early, default=0)
            self._check.expect(
                not early,
                lambda s=source, f=found, e=expected: f"{s}: found {f}, expected {e}",
            )
        return self._check

    def _go_on(self, source: str) -> None:
        early = self._early[source]
        last, end = self._ends[source]
        while last + 1 in early:
            link = early.pop(last + 1)
            self._check.expect(
                link.previous_hash == end,
                lambda i=link.event_id: f"event {i} does not follow the one before it",
            )
            last, end = last + 1, link.content_hash
        self._ends[source] = last, end

    def _pass_over(self, source: str) -> bool:
        """Whether the next link of the chain is in quarantine."""
        last, end = self._ends[source]
        for link in self._set_aside[source, last + 1]:
            if link.previous_hash == end:
                self._ends[source] = last + 1, link.content_hash
                return True
        return False


class CountCheck:
    """I9: tokens billed are tokens reported."""

    def __init__(self, documents: Mapping[str, CanonicalDocument]) -> None:
        self._check = Check("I9", "tokens billed are the tokens that the upstream reported")
        self._documents = documents

    def see(self, event: ReplayedEvent) -> None:
        decoded = event.said
        # Of an answer that was cut short only the delivered part is billed.
        if MATRIX[decoded.data.end_cause] != "reported":
            return
        raw = decoded.data.upstream_usage
        reported = read_upstream_usage(raw) if raw else None
        if reported and reported.counts:
            priced = self._priced(decoded)
            reported = reported.folded({*decoded.data.meters, *priced})
            if CALL in priced:
                reported = reported.with_one(CALL)
        self._check.expect(
            reported is not None and write_meters(reported) == decoded.data.meters,
            lambda: f"event {decoded.id} bills other counts than were reported",
        )

    def finish(self) -> Check:
        return self._check

    def _priced(self, event: UsageEvent) -> set[str]:
        """Those meters that are counted only where they have a price."""
        document = self._documents.get(event.data.price_version)
        optional = {CALL, ITEM, INPUT_TEXT, *ENGINE_TIME}
        try:
            return priced_among(event.data, optional, document=document) if document else set()
        except EventNotRateable:
            # The rating's own check names this event.
            return set()


class HourCheck:
    """I10: the hourly sums, of which statements and invoices are made, are those of the events."""

    def __init__(self) -> None:
        self._check = Check("I10", "every hourly sum is what its events add up to")
        self._sums: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0])

    def see(self, event: ReplayedEvent) -> None:
        row = event.row
        if row.outcome != "settled":
            return
        billed, used = row.billed_at[:HOUR_CHARACTERS], row.ended_at[:HOUR_CHARACTERS]
        path = row.path
        self._sums["request_hours", path, billed][0] += 1
        for meter, count, picos_per_unit in json.loads(row.charges):
            found = self._sums["usage_hours", path, billed, used, meter, picos_per_unit]
            found[0] += count
            found[1] += count * picos_per_unit
        for draw in read_draws(row.draws):
            owner = path.organisation_id, path.payer_id
            key = "funding_hours", *owner, billed, draw.grant_id, path.currency
            self._sums[key][0] += draw.picos

    def compare(self, rows: Iterable[HourRow]) -> None:
        """Compare what was seen with what the books have added up."""
        for row in rows:
            expected = self._sums.pop((row.table, *row.key), [0, 0])
            found = [*row.sums, 0][:2]
            self._check.expect(
                found == expected,
                lambda r=row, f=found, e=expected: f"{r.table} {r.key}: {f}, events say {e}",
            )
        for key in self._sums:
            self._check.expect(False, lambda k=key: f"{k[0]} has no row for {k[1:]}")

    def finish(self) -> Check:
        return self._check


class BudgetCheck:
    """I6: what budgets count as used is what their events used."""

    def __init__(self, decisions: Mapping[str, int]) -> None:
        self._check = Check("I6", "every budget has used what its events used")
        self._decisions = decisions
        self._used: dict[tuple[str, str], int] = defaultdict(int)

    def see(self, event: ReplayedEvent) -> None:
        row = event.row
        if not row.budget_draws:
            return
        money = row.amount if row.outcome == "settled" else self._decisions.get(row.id, 0)
        if not money and row.outcome == "suspended":
            return
        meters = event.said.data.meters
        counted = (
            {meter: count for meter, count, _ in json.loads(row.charges)}
            if row.outcome == "settled"
            else {meter: int(count) for meter, count in meters.items()}
        )
        tokens = tokens_within(counted)
        for draw in read_budget_draws(row.budget_draws):
            self._used[draw.budget_id, draw.window] += money if draw.unit == "money" else tokens

    def compare(self, used: Mapping[tuple[str, str], int]) -> None:
        for window in sorted(used.keys() | self._used.keys()):
            found, expected = used.get(window, 0), self._used.get(window, 0)
            self._check.expect(
                found == expected,
                lambda w=window, f=found, e=expected: f"budget {w} has used {f}, its events {e}",
            )

    def finish(self) -> Check:
        return self._check
