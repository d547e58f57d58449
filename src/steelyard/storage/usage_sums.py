"""Sums of usage over any period: whole hours from what the worker has added up, the rest of the
first and the last hour from the events themselves, so that every sum is exact to the microsecond."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, case, exists, func, literal, select, text

from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.ledger.hold import read_draws
from steelyard.storage import schema
from steelyard.timestamp import write_timestamp

_events, _hours, _requests = schema.usage_events, schema.usage_hours, schema.request_hours
_funding = schema.funding_hours

# path, meter, unit price, and the hour of use where that matters
SumKey = tuple[int, str, int, str]
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Span:
    """A period cut along hours: `first_hour` up to but without `last_hour` are whole."""

    first_hour: str
    last_hour: str
    edges: Sequence[tuple[datetime, datetime]]


def cut_span(
    connection: Connection, path_ids: Sequence[int], *, start: datetime | None, end: datetime
) -> Span:
    """Cut [start, end) along hours. An hour in which nothing was billed after `end` is whole."""
    end_hour = _floor(end)
    last = end_hour
    edges: list[tuple[datetime, datetime]] = []
    start_hour = None if start is None else _floor(start)
    first = start_hour
    if start is not None and start_hour is not None and start > start_hour:
        first = start_hour + HOUR
        edges.append((start, min(first, end)))
    if end > end_hour and (start is None or start <= end_hour):
        if _is_billed_within(connection, path_ids, end, end_hour + HOUR):
            edges.append((end_hour, end))
        else:
            last = end_hour + HOUR
    first_hour = "" if first is None else write_timestamp(first)[:HOUR_CHARACTERS]
    return Span(first_hour, write_timestamp(last)[:HOUR_CHARACTERS], edges)


def usage_sums(
    connection: Connection, path_ids: Sequence[int], span: Span, *, late_before: str = ""
) -> dict[SumKey, tuple[int, int]]:
    """Count and picos of the settled usage of these paths, by path, meter and unit price; of what
    was used in an hour before `late_before` by that hour as well."""
    sums: dict[SumKey, list[int]] = defaultdict(lambda: [0, 0])
    late = literal(late_before)
    used_hour = case((_hours.c.used_hour < late, _hours.c.used_hour), else_=literal(""))
    query = (
        select(
            _hours.c.path_id,
            _hours.c.meter,
            _hours.c.picos_per_unit,
            used_hour.label("late_hour"),
            func.sum(_hours.c.count).label("total_count"),
            func.sum(_hours.c.picos).label("total_picos"),
        )
        .where(
            _hours.c.path_id.in_(path_ids),
            _hours.c.billed_hour >= span.first_hour,
            _hours.c.billed_hour < span.last_hour,
        )
        .group_by(_hours.c.path_id, _hours.c.meter, _hours.c.picos_per_unit, text("late_hour"))
    )
    for row in connection.execute(query):
        found = sums[row.path_id, row.meter, int(row.picos_per_unit), row.late_hour]
        found[0] += int(row.total_count)
        found[1] += int(row.total_picos)
    for edge in _edge_events(connection, path_ids, span):
        hour = edge.ended_at[:HOUR_CHARACTERS]
        late_hour = hour if hour < late_before else ""
        for meter, count, picos_per_unit in json.loads(edge.charges):
            found = sums[edge.path_id, meter, picos_per_unit, late_hour]
            found[0] += count
            found[1] += count * picos_per_unit
    return {key: (count, picos) for key, (count, picos) in sums.items()}


def request_sum(connection: Connection, path_ids: Sequence[int], span: Span) -> int:
    """How many settled events there were."""
    query = select(func.sum(_requests.c.request_count)).where(
        _requests.c.path_id.in_(path_ids),
        _requests.c.billed_hour >= span.first_hour,
        _requests.c.billed_hour < span.last_hour,
    )
    whole = int(connection.execute(query).scalar_one() or 0)
    return whole + sum(1 for _ in _edge_events(connection, path_ids, span))


def funding_sum(connection: Connection, payer_id: str, path_ids: Sequence[int], span: Span) -> int:
    """What the settled usage of a payer took from it; `path_ids` are all of its paths."""
    return sum(funding_by_grant(connection, payer_id, path_ids, span).values())


def funding_by_grant(
    connection: Connection, payer_id: str, path_ids: Sequence[int], span: Span
) -> dict[str, int]:
    """What the settled usage of a payer took from each of its grants and from its credit line."""
    sums: dict[str, int] = defaultdict(int)
    query = (
        select(_funding.c.grant_id, func.sum(_funding.c.picos).label("total_picos"))
        .where(
            _funding.c.payer_id == payer_id,
            _funding.c.billed_hour >= span.first_hour,
            _funding.c.billed_hour < span.last_hour,
        )
        .group_by(_funding.c.grant_id)
    )
    for row in connection.execute(query):
        sums[row.grant_id] += int(row.total_picos)
    for edge in _edge_events(connection, path_ids, span):
        for draw in read_draws(edge.draws):
            sums[draw.grant_id] += draw.picos
    return sums


@dataclass(frozen=True, slots=True)
class _EdgeEvent:
    """An event that is billed in an hour of which only a part is in the span."""

    path_id: int
    ended_at: str
    charges: str
    draws: str


def _edge_events(
    connection: Connection, path_ids: Sequence[int], span: Span
) -> Iterator[_EdgeEvent]:
    columns = _events.c.path_id, _events.c.ended_at, _events.c.charges, _events.c.draws
    for start, end in span.edges:
        query = select(*columns).where(
            _events.c.path_id.in_(path_ids),
            _events.c.outcome == "settled",
            _events.c.billed_at >= start,
            _events.c.billed_at < end,
        )
        for row in connection.execute(query):
            yield _EdgeEvent(row.path_id, write_timestamp(row.ended_at), row.charges, row.draws)


def _is_billed_within(
    connection: Connection, path_ids: Sequence[int], start: datetime, end: datetime
) -> bool:
    query = select(
        exists().where(
            _events.c.path_id.in_(path_ids),
            _events.c.billed_at >= start,
            _events.c.billed_at < end,
        )
    )
    return bool(connection.execute(query).scalar_one())


def _floor(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
