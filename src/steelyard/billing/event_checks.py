"""Checks of the events, one after the other: each check sees every event, and then concludes."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from steelyard.billing.event_rating import EventNotRateable, calls_are_priced, rate_record
from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.billing.invariant_check import Check
from steelyard.billing.ledger_checks import PostingSums
from steelyard.billing.settlement_matrix import MATRIX
from steelyard.billing.stored_event import EventRow, HourRow
from steelyard.ledger.hold import Hold, read_draws
from steelyard.metering.upstream_usage import OpenAIUsage, translate_openai_usage
from steelyard.metering.usage import CALL
from steelyard.metering.usage_event import UsageEvent, decode_event, hash_event, write_meters
from steelyard.money import read_decimal
from steelyard.pricing.price_book import CanonicalDocument

FIRST_PREVIOUS_HASH = "0" * 64


class EventCheck(Protocol):
    """An invariant over all events."""

    def see(self, event: EventRow) -> None: ...

    def finish(self) -> Check: ...


class EffectCheck:
    """I4: what a batch posted is what its events say, no more and no less."""

    def __init__(self, postings: PostingSums, holds: Mapping[str, Hold]) -> None:
        claim = "every event has its one effect on the ledger, and every effect has its events"
        self._check = Check("I4", claim)
        self._posted = postings.by_batch
        self._holds = holds
        self._expected: dict[tuple[str, str], int] = defaultdict(int)

    def see(self, event: EventRow) -> None:
        self._check.expect(
            event.id not in self._holds, lambda: f"event {event.id} is booked, its hold still open"
        )
        decoded = _try_decode(event)
        if decoded is None:
            return
        held = read_decimal(decoded.data.held)
        self._expect(event, f"held:{event.path.payer_id}", -held)
        if event.outcome == "suspended":
            self._expect(event, "suspense", held)
            return
        draws = read_draws(event.draws)
        captured = sum(draw.picos for draw in draws)
        self._expect(event, "revenue", event.amount)
        self._expect(event, "suspense", captured - event.amount)
        self._expect(event, f"back:{event.path.payer_id}", held - captured)

    def finish(self) -> Check:
        posted: dict[tuple[str, str], int] = defaultdict(int)
        for (batch, account_id), picos in self._posted.items():
            posted[batch, _fold(account_id)] += picos
        for key in sorted(posted.keys() | self._expected.keys()):
            found, expected = posted.get(key, 0), self._expected.get(key, 0)
            self._check.expect(
                found == expected,
                lambda k=key, f=found, e=expected: (
                    f"batch {k[0]} posted {f} picos to {k[1]}, its events say {e}"
                ),
            )
        return self._check

    def _expect(self, event: EventRow, account: str, picos: int) -> None:
        self._expected[event.batch, f"{account}:{event.path.currency}"] += picos


def _fold(account_id: str) -> str:
    """What returns to a payer's grants and credit line counts as one."""
    kind, *owner, currency = account_id.split(":")
    if kind in {"prepaid", "receivable"}:
        return f"back:{owner[0]}:{currency}"
    return account_id


class RatingCheck:
    """I5: every settled event costs what its price version says, by a rating of its own."""

    def __init__(self, documents: Mapping[str, CanonicalDocument]) -> None:
        self._check = Check("I5", "event, price book and charge lines agree to the last pico")
        self._documents = documents

    def see(self, event: EventRow) -> None:
        if event.outcome != "settled":
            return
        rated = self._rate_again(event)
        lines = sum(count * picos for _, count, picos in json.loads(event.charges))
        amounts = rated, event.amount, lines
        self._check.expect(
            len(set(amounts)) == 1,
            lambda: f"event {event.id}: rated {rated}, booked {event.amount}, lines {lines}",
        )

    def finish(self) -> Check:
        return self._check

    def _rate_again(self, event: EventRow) -> int | str:
        try:
            record = decode_event(event.body).data
            document = self._documents.get(record.price_version)
            if document is None:
                return "without a price version"
            total = sum(line.picos for line in rate_record(record, document=document))
        except (msgspec.DecodeError, EventNotRateable) as error:
            return str(error)
        stated = read_decimal(record.amount)
        return total if total == stated else f"{total}, stated as {stated}"


class ChainCheck:
    """I7: no source has a gap, and no event was changed."""

    def __init__(self) -> None:
        self._check = Check("I7", "no source has a gap; every event hashes to what follows it")
        self._source = ""
        self._sequence = 0
        self._previous_hash = FIRST_PREVIOUS_HASH

    def see(self, event: EventRow) -> None:
        check = self._check
        if event.source != self._source:
            self._source, self._sequence = event.source, 0
            self._previous_hash = FIRST_PREVIOUS_HASH
        expected = self._sequence + 1
        found_hash = hash_event(event.body)
        check.expect(
            found_hash == event.content_hash.hex(),
            lambda: f"event {event.id} was changed after it was booked",
        )
        check.expect(
            event.sequence == expected,
            lambda: f"{event.source}: found {event.sequence}, expected {expected}",
        )
        decoded = _try_decode(event)
        check.expect(
            decoded is not None and decoded.previoushash == self._previous_hash,
            lambda: f"event {event.id} does not follow the one before it",
        )
        check.expect(
            decoded is not None and (decoded.id, decoded.source) == (event.id, event.source),
            lambda: f"event {event.id} is booked under another name than its own",
        )
        self._sequence, self._previous_hash = event.sequence, found_hash

    def finish(self) -> Check:
        return self._check


class CountCheck:
    """I9: tokens billed are tokens reported."""

    def __init__(self, documents: Mapping[str, CanonicalDocument]) -> None:
        self._check = Check("I9", "tokens billed are the tokens that the upstream reported")
        self._documents = documents

    def see(self, event: EventRow) -> None:
        decoded = _try_decode(event)
        # Of an answer that was cut short only the delivered part is billed.
        if decoded is None or MATRIX[decoded.data.end_cause] != "reported":
            return
        raw = decoded.data.upstream_usage
        reported = (
            translate_openai_usage(msgspec.json.decode(raw, type=OpenAIUsage)) if raw else None
        )
        if reported and reported.counts and self._are_calls_priced(decoded):
            reported = reported.with_one(CALL)
        self._check.expect(
            reported is not None and write_meters(reported) == decoded.data.meters,
            lambda: f"event {event.id} bills other counts than were reported",
        )

    def finish(self) -> Check:
        return self._check

    def _are_calls_priced(self, event: UsageEvent) -> bool:
        """Whether the answer itself is counted, beside what the upstream reported."""
        document = self._documents.get(event.data.price_version)
        try:
            return document is not None and calls_are_priced(event.data, document=document)
        except EventNotRateable:
            # The rating's own check names this event.
            return False


class HourCheck:
    """I10: the hourly sums, of which statements and invoices are made, are those of the events."""

    def __init__(self) -> None:
        self._check = Check("I10", "every hourly sum is what its events add up to")
        self._sums: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0])

    def see(self, event: EventRow) -> None:
        if event.outcome != "settled":
            return
        billed, used = event.billed_at[:HOUR_CHARACTERS], event.ended_at[:HOUR_CHARACTERS]
        path = event.path
        self._sums["request_hours", path, billed][0] += 1
        for meter, count, picos_per_unit in json.loads(event.charges):
            found = self._sums["usage_hours", path, billed, used, meter, picos_per_unit]
            found[0] += count
            found[1] += count * picos_per_unit
        for draw in read_draws(event.draws):
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


def _try_decode(event: EventRow) -> UsageEvent | None:
    try:
        return decode_event(event.body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
