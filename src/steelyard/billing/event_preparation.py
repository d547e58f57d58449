"""Preparation: a batch of log records is decoded, checked, hashed and rated. Pure, and no books.

Whatever the books do not decide is decided here, a column of the batch at a time, so that it can
run in a process of its own while the batch before it is posted.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import msgspec

from steelyard.billing.batch_rating import BatchRating, Rated
from steelyard.billing.event_content import EventMalformed, check_content
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
    decoded, malformed = _decode(records)
    if not _all_well_formed([event for _, event in decoded]):
        decoded, malformed = _sift(records)
    rated = rating.rate([event.data for _, event in decoded])
    paths, path_of = _number_paths([event.data for _, event in decoded])
    charges = ChargeWriter()
    events = [
        _prepare(index, event, found, path=path, body=records[index].body, charges=charges)
        for (index, event), path, found in zip(decoded, path_of, rated, strict=True)
    ]
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
        malformed=malformed,
        usage=usage,
        segment=pack_bodies([record.body for record in records]),
    )


def _decode(records: Sequence[LogRecord]) -> tuple[list[tuple[int, _Event]], list[Malformed]]:
    decoded: list[tuple[int, _Event]] = []
    malformed: list[Malformed] = []
    decode = _decoder.decode
    for index, record in enumerate(records):
        try:
            decoded.append((index, decode(record.body)))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            malformed.append(Malformed(index, f"not a usage event: {error}"))
    return decoded, malformed


def _sift(records: Sequence[LogRecord]) -> tuple[list[tuple[int, _Event]], list[Malformed]]:
    """The slow way, one by one: find which of the records is not what it says it is."""
    decoded: list[tuple[int, _Event]] = []
    malformed: list[Malformed] = []
    for index, record in enumerate(records):
        try:
            event = _decoder.decode(record.body)
            check_content(decode_event(record.body))
            if not _all_well_formed([event]):
                raise EventMalformed("an amount, a count or a moment is not written as we write it")
        except (msgspec.DecodeError, msgspec.ValidationError, EventMalformed) as error:
            malformed.append(Malformed(index, f"not a usage event: {error}"))
            continue
        decoded.append((index, event))
    return decoded, malformed


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
    index: int, event: _Event, rated: Rated, *, path: int, body: bytes, charges: ChargeWriter
) -> PreparedEvent:
    record = event.data
    complaint = rated.complaint
    if complaint is None and rated.picos != _picos(record.amount):
        complaint = f"we rate {rated.picos} picos, the gateway {record.amount}"
    return PreparedEvent(
        event.id,
        record.hold_id,
        hashlib.sha256(body).digest(),
        event.source,
        int(event.sequence),
        path,
        record.ended_at,
        rated.picos,
        charges.write(rated.sheet, rated.counts),
        complaint,
        index,
        record.lease_id,
        _picos(record.held) if record.lease_id is not None else 0,
        _picos(record.amount) if record.lease_id is not None else 0,
    )


def _picos(amount: str) -> int:
    """The picos of a decimal that is known to be well-formed."""
    whole, _, decimals = amount.partition(".")
    return int(whole + decimals.ljust(PICO_DIGITS, "0"))
