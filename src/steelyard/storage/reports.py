"""Reads statements and recent events out of the books."""

from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Column, ColumnElement, Connection, func, select, text

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.statement import Period, StatementLine
from steelyard.ledger.grant import Funds
from steelyard.ledger.transaction import COMMAND_TEMPLATES
from steelyard.metering.event_segment import unpack_bodies
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.fund_reports import funds_of
from steelyard.storage.usage_sums import cut_span, funding_sum, request_sum, usage_sums

_postings, _transactions = schema.ledger_postings, schema.ledger_transactions
_events, _paths = schema.usage_events, schema.usage_paths

_decisions = schema.suspense_decisions
DECIDE_SUSPENSE: Final = "decide_suspense"
_OWN_KINDS: Final = ("prepaid", "held", "leased", "receivable", "invoiced")


@dataclass(frozen=True, slots=True)
class RecentEvent:
    """A usage event as the books hold it."""

    body: bytes
    outcome: str


class SqlReports:
    """Opens snapshots; `SqlSnapshot` implements Reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator["SqlSnapshot"]:
        """One moment of the books, for as many questions as it takes."""
        with self._database.read() as connection:
            yield SqlSnapshot(connection)


class SqlSnapshot:
    """Implements Reports."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def funds_of(self, payer_id: str, *, currency: Currency) -> Funds:
        return funds_of(self._connection, payer_id, currency=currency)

    def commands(self, payer_id: str, *, before: datetime) -> Mapping[str, int]:
        query = (
            select(_transactions.c.template, _postings.c.account_id, _postings.c.picos)
            .join(_postings, _postings.c.transaction_id == _transactions.c.id)
            .where(
                _transactions.c.template.in_(COMMAND_TEMPLATES),
                # A decision counts as what it charges: what it returns was never spent.
                _transactions.c.template != DECIDE_SUSPENSE,
                _transactions.c.booked_at < before,
            )
        )
        sums: dict[str, int] = defaultdict(int)
        for template, account_id, picos in self._connection.execute(query):
            kind, *owner = account_id.split(":")
            if kind in _OWN_KINDS and owner[0] == payer_id:
                sums[template] += picos
        charged = self._decided(payer_id, _decisions.c.amount, before=before)
        if charged:
            sums[DECIDE_SUSPENSE] = -charged
        return dict(sums)

    def charges(self, payer_id: str, *, before: datetime) -> int:
        path_ids = self._path_ids(_paths.c.payer_id == payer_id)
        span = cut_span(self._connection, path_ids, start=None, end=before)
        return funding_sum(self._connection, payer_id, path_ids, span)

    def suspended(self, payer_id: str, *, before: datetime) -> int:
        query = select(func.sum(_events.c.amount)).where(
            _events.c.path_id.in_(self._path_ids(_paths.c.payer_id == payer_id)),
            # As it stands in the condition of the index, which a parameter would not match.
            text("outcome = 'suspended'"),
            _events.c.billed_at < before,
        )
        waits = int(self._connection.execute(query).scalar_one() or 0)
        return waits - self._decided(payer_id, _events.c.amount, before=before)

    def lines(self, tenant: Organisation | Department, *, period: Period) -> list[StatementLine]:
        names = self._names(tenant)
        span = cut_span(self._connection, list(names), start=period.start, end=period.end)
        merged: dict[tuple[str, str, str, str, str, int], list[int]] = defaultdict(lambda: [0, 0])
        sums = usage_sums(self._connection, list(names), span)
        for (path_id, meter, picos_per_unit, _), (count, picos) in sums.items():
            total = merged[(*names[path_id], meter, picos_per_unit)]
            total[0] += count
            total[1] += picos
        return [
            StatementLine(
                department=department,
                project=project or None,
                key=key,
                model=model,
                meter=meter,
                count=count,
                picos_per_unit=picos_per_unit,
                picos=picos,
            )
            for (department, project, key, model, meter, picos_per_unit), (count, picos) in sorted(
                merged.items()
            )
        ]

    def request_count(self, tenant: Organisation | Department, *, period: Period) -> int:
        path_ids = list(self._names(tenant))
        span = cut_span(self._connection, path_ids, start=period.start, end=period.end)
        return request_sum(self._connection, path_ids, span)

    def recent_events(
        self, *, department_id: str | None = None, event_id: str | None = None, limit: int
    ) -> list[RecentEvent]:
        """The newest events first; ids are in the order of their making."""
        segments = schema.event_segments
        query = select(_events.c.segment_id, _events.c.place, _events.c.outcome).order_by(
            _events.c.id.desc()
        )
        if department_id is not None:
            path_ids = self._path_ids(_paths.c.department_id == department_id)
            query = query.where(_events.c.path_id.in_(path_ids))
        if event_id is not None:
            query = query.where(_events.c.id == event_id)
        rows = self._connection.execute(query.limit(limit)).all()
        bodies: dict[int, list[bytes]] = {}
        for segment_id in sorted({row.segment_id for row in rows}):
            packed = select(segments.c.body).where(segments.c.id == segment_id)
            body: bytes = self._connection.execute(packed).scalar_one()
            bodies[segment_id] = unpack_bodies(body)
        found: list[RecentEvent] = []
        for row in rows:
            place: int = row.place
            found.append(RecentEvent(bodies[row.segment_id][place], row.outcome))
        return found

    def _decided(self, payer_id: str, column: Column[int], *, before: datetime) -> int:
        """The sum of what was charged, or was held, of suspended events decided on by then."""
        query = (
            select(func.sum(column))
            .select_from(_decisions)
            .join(_events, _events.c.id == _decisions.c.event_id)
            .join(_paths, _paths.c.id == _events.c.path_id)
            .where(_paths.c.payer_id == payer_id, _decisions.c.decided_at < before)
        )
        return int(self._connection.execute(query).scalar_one() or 0)

    def _path_ids(self, condition: ColumnElement[bool]) -> list[int]:
        return [row.id for row in self._connection.execute(select(_paths.c.id).where(condition))]

    def _names(self, tenant: Organisation | Department) -> dict[int, tuple[str, str, str, str]]:
        """Department, project, key and model of every path of a tenant."""
        departments, projects, keys = schema.departments, schema.projects, schema.virtual_keys
        owner = (
            _paths.c.department_id if isinstance(tenant, Department) else _paths.c.organisation_id
        )
        query = (
            select(
                _paths.c.id,
                departments.c.name.label("department"),
                func.coalesce(projects.c.name, "").label("project"),
                keys.c.name.label("key"),
                _paths.c.model,
            )
            .join(departments, departments.c.id == _paths.c.department_id)
            .outerjoin(projects, projects.c.id == _paths.c.project_id)
            .join(keys, keys.c.id == _paths.c.key_id)
            .where(owner == tenant.id)
        )
        return {
            row.id: (row.department, row.project, row.key, row.model)
            for row in self._connection.execute(query)
        }
