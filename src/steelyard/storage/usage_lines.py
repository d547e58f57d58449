"""Reads usage lines and adjustments of a period, one after the other, in the same order on every
database and after every replay."""

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from steelyard.access.tenant import Organisation
from steelyard.billing.export_lines import AdjustmentLine
from steelyard.billing.hourly_sums import HOUR_CHARACTERS, read_charges
from steelyard.billing.statement import Period
from steelyard.billing.usage_line import UsageLine
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.usage_sums import Span, cut_span
from steelyard.timestamp import read_timestamp, write_timestamp

ROWS_AT_ONCE: Final = 2_000

_events, _hours, _paths = schema.usage_events, schema.usage_hours, schema.usage_paths
_adjustments, _re_rated = schema.adjustments, schema.re_rated_events

# Billed hour, used hour, path, meter and picos per unit.
_Key = tuple[str, str, int, str, int]


class SqlExportBooks:
    """Implements ExportBooks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> "Generator[SqlExportSnapshot]":
        with self._database.read() as connection:
            yield SqlExportSnapshot(connection)


class SqlExportSnapshot:
    """Implements ExportSnapshot."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def usage_lines(self, organisation: Organisation, *, period: Period) -> Iterator[UsageLine]:
        paths = self._paths(organisation)
        span = cut_span(self._connection, list(paths), start=period.start, end=period.end)
        for _, lines in groupby(self._sums(organisation, span), key=lambda item: item[0][:2]):
            made = [_usage_line(key, sums, paths[key[2]]) for key, sums in lines]
            yield from sorted(made, key=_order_of)

    def adjustment_lines(
        self, organisation: Organisation, *, period: Period
    ) -> Iterator[AdjustmentLine]:
        departments = schema.departments
        about_event = (
            select(_events.c.billed_at)
            .where(_events.c.id == _adjustments.c.reference)
            .scalar_subquery()
        )
        about_run = (
            select(func.min(_events.c.billed_at))
            .join(_re_rated, _re_rated.c.event_id == _events.c.id)
            .where(_re_rated.c.run_id == _adjustments.c.reference)
            .scalar_subquery()
        )
        query = (
            select(
                _adjustments,
                departments.c.name.label("department"),
                func.coalesce(about_event, about_run).label("first_billed"),
            )
            .outerjoin(departments, departments.c.id == _adjustments.c.department_id)
            .where(
                _adjustments.c.organisation_id == organisation.id,
                _adjustments.c.billed_at >= period.start,
                _adjustments.c.billed_at < period.end,
            )
            .order_by(_adjustments.c.billed_at, _adjustments.c.id)
            .execution_options(yield_per=ROWS_AT_ONCE)
        )
        for row in self._connection.execute(query):
            yield AdjustmentLine(
                id=row.id,
                kind=row.kind,
                department_id=row.department_id or None,
                department=row.department,
                reference=row.reference,
                billed_at=row.billed_at,
                corrects_earlier=_moment(row.first_billed or row.billed_at) < period.start,
                picos=-row.amount,
            )

    def billed(self, organisation: Organisation, *, period: Period) -> int:
        events = (
            select(func.sum(_events.c.amount))
            .join(_paths, _paths.c.id == _events.c.path_id)
            .where(
                _paths.c.organisation_id == organisation.id,
                _events.c.outcome == "settled",
                _events.c.billed_at >= period.start,
                _events.c.billed_at < period.end,
            )
        )
        adjusted = select(func.sum(_adjustments.c.amount)).where(
            _adjustments.c.organisation_id == organisation.id,
            _adjustments.c.billed_at >= period.start,
            _adjustments.c.billed_at < period.end,
        )
        charged, given_back = (
            int(self._connection.execute(query).scalar_one() or 0) for query in (events, adjusted)
        )
        return charged - given_back

    def _sums(
        self, organisation: Organisation, span: Span
    ) -> Iterator[tuple[_Key, tuple[int, int]]]:
        """By billed and used hour; an hour that the period cuts is added up from its events."""
        for start, end in span.edges:
            if write_timestamp(start)[:HOUR_CHARACTERS] < span.first_hour:
                yield from self._edge_sums(organisation, start, end)
        yield from self._whole_sums(organisation, span)
        for start, end in span.edges:
            if write_timestamp(start)[:HOUR_CHARACTERS] >= span.first_hour:
                yield from self._edge_sums(organisation, start, end)

    def _whole_sums(
        self, organisation: Organisation, span: Span
    ) -> Iterator[tuple[_Key, tuple[int, int]]]:
        query = (
            # A row has a method called `count`.
            select(_hours, _hours.c.count.label("unit_count"))
            .join(_paths, _paths.c.id == _hours.c.path_id)
            .where(
                _paths.c.organisation_id == organisation.id,
                _hours.c.billed_hour >= span.first_hour,
                _hours.c.billed_hour < span.last_hour,
            )
            .order_by(_hours.c.billed_hour, _hours.c.used_hour)
            .execution_options(yield_per=ROWS_AT_ONCE)
        )
        for row in self._connection.execute(query):
            key = row.billed_hour, row.used_hour, row.path_id, row.meter, row.picos_per_unit
            yield key, (row.unit_count, row.picos)

    def _edge_sums(
        self, organisation: Organisation, start: datetime, end: datetime
    ) -> Iterator[tuple[_Key, tuple[int, int]]]:
        query = (
            select(_events.c.path_id, _events.c.ended_at, _events.c.billed_at, _events.c.charges)
            .join(_paths, _paths.c.id == _events.c.path_id)
            .where(
                _paths.c.organisation_id == organisation.id,
                _events.c.outcome == "settled",
                _events.c.billed_at >= start,
                _events.c.billed_at < end,
            )
            .execution_options(yield_per=ROWS_AT_ONCE)
        )
        sums: dict[_Key, list[int]] = defaultdict(lambda: [0, 0])
        for row in self._connection.execute(query):
            hours = (_hour(row.billed_at), _hour(row.ended_at))
            for meter, count, picos_per_unit in read_charges(row.charges):
                found = sums[(*hours, row.path_id, meter, picos_per_unit)]
                found[0] += count
                found[1] += count * picos_per_unit
        for key, (count, picos) in sorted(sums.items()):
            yield key, (count, picos)

    def _paths(self, organisation: Organisation) -> Mapping[int, Row[Any]]:
        """What each path of an organisation is called; no path is left out for want of a name."""
        departments, projects, keys = schema.departments, schema.projects, schema.virtual_keys
        query = (
            select(
                _paths,
                func.coalesce(departments.c.name, _paths.c.department_id).label("department"),
                projects.c.name.label("project"),
                func.coalesce(keys.c.name, _paths.c.key_id).label("key"),
            )
            .outerjoin(departments, departments.c.id == _paths.c.department_id)
            .outerjoin(projects, projects.c.id == _paths.c.project_id)
            .outerjoin(keys, keys.c.id == _paths.c.key_id)
            .where(_paths.c.organisation_id == organisation.id)
        )
        return {row.id: row for row in self._connection.execute(query)}


def _usage_line(key: _Key, sums: tuple[int, int], path: Row[Any]) -> UsageLine:
    billed_hour, used_hour, _, meter, picos_per_unit = key
    count, picos = sums
    return UsageLine(
        department_id=path.department_id,
        department=path.department,
        project=path.project,
        key=path.key,
        model=path.model,
        upstream=path.upstream,
        meter=meter,
        picos_per_unit=picos_per_unit,
        price_version=path.price_version,
        used_from=_start_of(used_hour),
        billed_from=_start_of(billed_hour),
        count=count,
        picos=picos,
    )


def _order_of(line: UsageLine) -> tuple[str | int, ...]:
    return (
        line.department,
        line.project or "",
        line.key,
        line.model,
        line.upstream,
        line.price_version,
        line.meter,
        line.picos_per_unit,
    )


def _hour(moment: datetime) -> str:
    return write_timestamp(moment)[:HOUR_CHARACTERS]


def _start_of(hour: str) -> datetime:
    return read_timestamp(f"{hour}:00:00Z")


def _moment(found: datetime | str) -> datetime:
    """A database says text where it had to choose between two moments."""
    return read_timestamp(found) if isinstance(found, str) else found
