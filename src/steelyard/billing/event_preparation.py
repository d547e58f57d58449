"""Preparation: a batch of log records is decoded, checked, hashed and rated. Pure, and no books.

Whatever the books do not decide is decided here, a column of the batch at a time, so that it can
run in a process of its own while the batch before it is posted.
"""

import re
from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from typing import NamedTuple

import msgspec

from steelyard.billing.batch_rating import BatchRating, Rated
from steelyard.billing.event_content import EventMalformed, check_content
from steelyard.billing.event_shares import is_split
from steelyard.billing.hourly_sums import HOUR_CHARACTERS, ChargeWriter, UsageSums, sum_usage
from steelyard.eventlog.log import LogRecord
from steelyard.metering.event_segment import pack_bodies
from steelyard.metering.usage import METERS
from steelyard.metering.usage_event import decode_event
from steelyard.money import PICO_DIGITS

_TIMESTAMP = r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z"
DATE_CHARACTERS = 10
_DECIMAL = r"(?:0|[1-9]\d{0,17})(?:\.\d{1,12})?"
_COUNT = r"[1-9]\d{0,17}"


class UsagePath(NamedTuple):
    """Who used which model at which price: what many events have in common."""

    organisation_id: str
    department_id: str
    project_id: str
    key_id: str
    payer_id: str
    model: str
    upstream: str
    currency: str
    price_version: str


class PreparedEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event as far as it can be judged without the books.

    `path` counts into the batch's paths and `record` into its records; `charges` are the charge
    lines as text.
    """

    id: str
    hold_id: str
    content_hash: bytes
    source: str
    sequence: int
    path: int
    ended_at: str
    picos: int
    charges: str
    complaint: str | None
    record: int
    # Only where the hold was granted from a lease: what was held, and what the gateway says it cost.
    lease_id: str | None = None
    held: int = 0
    stated: int = 0
    # Who is to bear the cost, by weight, where somebody is.
    split: dict[str, int] | None = None


class Malformed(msgspec.Struct, frozen=True, array_like=True):
    """A record that is no usage event, and why."""

    record: int
    reason: str


class PreparedBatch(msgspec.Struct, frozen=True, array_like=True):
    """What `settle_batch` posts: so many records of one log, from one position on.

    `segment` holds the bytes of all of them, `usage` what all that were rated add up to.
    """

    log_id: str
    first_position: int
    record_count: int
    events: list[PreparedEvent]
    paths: list[UsagePath]
    malformed: list[Malformed]
    usage: UsageSums
    segment: bytes

    @property
    def last_position(self) -> int:
        return self.first_position + self.record_count - 1


class _Record(msgspec.Struct, gc=False):
    """The part of an event that settlement goes by; the rest stays in the stored bytes."""

    organisation_id: str
    department_id: str
    key_id: str
    payer_id: str
    model_served: str
    upstream: str
    admitted_at: str
    ended_at: str
    price_version: str
    currency: str
    hold_id: str
    held: str
    amount: str
    meters: dict[str, str]
    project_id: str | None = None
    lease_id: str | None = None
    batch_id: str | None = None
    split: dict[str, int] | None = None


class _Event(msgspec.Struct, gc=False):
    id: str
    source: str
    sequence: str
    time: str
    data: _Record


_decoder = msgspec.json.Decoder(_Event)


def prepare_batch(
    records: Sequence[LogRecord], *, log_id: str, rating: BatchRating
) -> PreparedBatch:
    """Decode, check, hash and rate; a record that is no event is set apart with its reason."""
    decoded = _decode(records)
    if decoded is None or not _all_well_formed(decoded.events):
        decoded = _sift(records)
    facts = [event.data for event in decoded.events]
    rated = rating.rate(facts)
    paths, path_of = _number_paths(facts)
    events = _prepare(records, decoded, rated, path_of)
    usage = sum_usage(
        ((event.path, event.ended_at[:HOUR_CHARACTERS], found.sheet), found.counts)
        for event, found in zip(events, rated, strict=True)
        if event.complaint is None
    )
    return PreparedBatch(
        log_id=log_id,
        first_position=records[0].position,
        record_count=len(records),
        events=events,
        paths=paths,
        malformed=decoded.malformed,
        usage=usage,
        segment=pack_bodies([record.body for record in records]),
    )


class _Decoded(NamedTuple):
    """The records of a batch that are events, each with its place in the batch, and the others."""

    places: Sequence[int]
    events: list[_Event]
    malformed: list[Malformed]


def _decode(records: Sequence[LogRecord]) -> _Decoded | None:
    """All of them at once; None if any is no event."""
    decode = _decoder.decode
    try:
        events = [decode(record.body) for record in records]
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return _Decoded(range(len(records)), events, [])


def _sift(records: Sequence[LogRecord]) -> _Decoded:
    """The slow way, one by one: find which of the records is not what it says it is."""
    decoded = _Decoded([], [], [])
    places: list[int] = []
    for place, record in enumerate(records):
        try:
            event = _decoder.decode(record.body)
            check_content(decode_event(record.body))
            if not _all_well_formed([event]):
                raise EventMalformed(
                    "an amount, a count, a moment or a split is not written as we write it"
                )
        except (msgspec.DecodeError, msgspec.ValidationError, EventMalformed) as error:
            decoded.malformed.append(Malformed(place, f"not a usage event: {error}"))
            continue
        places.append(place)
        decoded.events.append(event)
    return decoded._replace(places=places)


def _all_well_formed(events: Sequence[_Event]) -> bool:
    """Whether every field that settlement relies on can be what it is called."""
    records = [event.data for event in events]
    moments = [record.ended_at for record in records]
    moments += [record.admitted_at for record in records]
    amounts = [record.amount for record in records]
    amounts += [record.held for record in records]
    counts = [event.sequence for event in events]
    for record in records:
        counts.extend(record.meters.values())
    return (
        all(record.meters.keys() <= METERS.keys() for record in records)
        and _each_is(_TIMESTAMP, moments)
        and _each_is(_DECIMAL, amounts)
        and _each_is(_COUNT, counts)
        and _are_in_the_calendar(moments)
        and all(is_split(record.split) for record in records if record.split is not None)
    )


def _each_is(pattern: str, texts: Sequence[str]) -> bool:
    """Match a whole column at once."""
    joined = ",".join(texts)
    if joined.count(",") >= max(len(texts), 1):
        return False
    return not texts or bool(re.fullmatch(f"(?:{pattern},)*+{pattern}", joined, re.ASCII))


def _are_in_the_calendar(moments: Sequence[str]) -> bool:
    try:
        for day in {moment[:DATE_CHARACTERS] for moment in moments}:
            date.fromisoformat(day)
    except ValueError:
        return False
    return True


def _number_paths(records: Sequence[_Record]) -> tuple[list[UsagePath], list[int]]:
    """The different paths of a batch, and which of them each record has."""
    numbers: dict[tuple[str, ...], int] = {}
    path_of = [
        numbers.setdefault(
            (
                record.organisation_id,
                record.department_id,
                record.project_id or "",
                record.key_id,
                record.payer_id,
                record.model_served,
                record.upstream,
                record.currency,
                record.price_version,
            ),
            len(numbers),
        )
        for record in records
    ]
    return [UsagePath(*path) for path in numbers], path_of


def _prepare(
    records: Sequence[LogRecord],
    decoded: _Decoded,
    rated: Sequence[Rated],
    path_of: Sequence[int],
) -> list[PreparedEvent]:
    """The events, put together from columns."""
    places, events, _ = decoded
    facts = [event.data for event in events]
    stated = [_picos(fact.amount) for fact in facts]
    charges = ChargeWriter()
    prepared = list(
        map(
            PreparedEvent,
            [event.id for event in events],
            [fact.hold_id for fact in facts],
            [sha256(records[place].body).digest() for place in places],
            [event.source for event in events],
            [int(event.sequence) for event in events],
            path_of,
            [fact.ended_at for fact in facts],
            [found.picos for found in rated],
            [charges.write(found.sheet, found.counts) for found in rated],
            map(_complaint, rated, stated, facts),
            places,
            [fact.lease_id for fact in facts],
            [_picos(fact.held) if fact.lease_id else 0 for fact in facts],
            [amount if fact.lease_id else 0 for fact, amount in zip(facts, stated, strict=True)],
            [fact.split for fact in facts],
        )
    )
    assert len(prepared) == len(events), "every column has a value for each event"
    return prepared


def _complaint(rated: Rated, stated: int, fact: _Record) -> str | None:
    """Why an event cannot be priced, or is not what its gateway says."""
    if rated.complaint is None and rated.picos != stated:
        return f"we rate {rated.picos} picos, the gateway {fact.amount}"
    return rated.complaint


def _picos(amount: str) -> int:
    """The picos of a decimal that is known to be well-formed."""
    whole, _, decimals = amount.partition(".")
    return int(whole + decimals.ljust(PICO_DIGITS, "0"))
