"""Reads statements, balances and recent events out of the books."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, func, select

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.statement import Period, StatementLine
from steelyard.ledger.chart import LedgerAccount
from steelyard.storage import schema
from steelyard.storage.database import Database

_accounts, _postings, _transactions = (
    schema.ledger_accounts,
    schema.ledger_postings,
    schema.ledger_transactions,
)
AnySelect = TypeVar("AnySelect", bound=Select[*tuple[Any, ...]])
_events, _lines = schema.usage_events, schema.charge_lines


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

    def balance_on(self, account: LedgerAccount, *, before: datetime | None = None) -> int:
        if before is None:
            query = select(_accounts.c.balance).where(_accounts.c.id == account.id)
            return self._connection.execute(query).scalar_one_or_none() or 0
        return self._sum_postings(
            _postings.c.account_id == account.id, _transactions.c.booked_at < before
        )

    def top_ups(self, tenant_id: str, *, period: Period) -> int:
        return self._sum_postings(
            _transactions.c.template == "top_up",
            _postings.c.account_id.startswith(f"prepaid:{tenant_id}:", autoescape=True),
            *_within(period),
        )

    def charges(self, payer_id: str, *, period: Period) -> int:
        return self._taken(payer_id, template="settle_hold", period=period)

    def suspended(self, payer_id: str, *, period: Period) -> int:
        return self._taken(payer_id, template="suspend_hold", period=period)

    def lines(self, tenant: Organisation | Department, *, period: Period) -> list[StatementLine]:
        departments, keys = schema.departments, schema.virtual_keys
        names = (
            departments.c.name,
            keys.c.name,
            _events.c.model,
            _lines.c.meter,
            _lines.c.picos_per_unit,
        )
        query = (
            select(
                departments.c.name.label("department"),
                keys.c.name.label("key"),
                _events.c.model,
                _lines.c.meter,
                _lines.c.picos_per_unit,
                func.sum(_lines.c.count).label("total_count"),
                func.sum(_lines.c.picos).label("total_picos"),
            )
            .select_from(_lines)
            .join(_events, _events.c.id == _lines.c.event_id)
            .join(departments, departments.c.id == _events.c.department_id)
            .join(keys, keys.c.id == _events.c.key_id)
            .where(_events.c.outcome == "settled")
            .group_by(*names)
            .order_by(*names)
        )
        return [
            StatementLine(
                department=row.department,
                key=row.key,
                model=row.model,
                meter=row.meter,
                count=int(row.total_count),
                picos_per_unit=row.picos_per_unit,
                picos=int(row.total_picos),
            )
            for row in self._connection.execute(_settled_within(query, tenant, period))
        ]

    def request_count(self, tenant: Organisation | Department, *, period: Period) -> int:
        query = select(func.count()).select_from(_events).where(_events.c.outcome == "settled")
        return self._connection.execute(_settled_within(query, tenant, period)).scalar_one()

    def recent_events(
        self, *, department_id: str | None = None, event_id: str | None = None, limit: int
    ) -> list[RecentEvent]:
        """The newest events first."""
        query = select(_events.c.body, _events.c.outcome).order_by(_events.c.ended_at.desc())
        if department_id is not None:
            query = query.where(_events.c.department_id == department_id)
        if event_id is not None:
            query = query.where(_events.c.id == event_id)
        rows = self._connection.execute(query.limit(limit))
        return [RecentEvent(row.body.encode(), row.outcome) for row in rows]

    def _taken(self, payer_id: str, *, template: str, period: Period) -> int:
        """What transactions of a template took from a payer: the negative of all they posted."""
        account_id = _postings.c.account_id
        return -self._sum_postings(
            _transactions.c.template == template,
            account_id.startswith(f"prepaid:{payer_id}:", autoescape=True)
            | account_id.startswith(f"held:{payer_id}:", autoescape=True),
            *_within(period),
        )

    def _sum_postings(self, *conditions: ColumnElement[bool]) -> int:
        query = (
            select(func.sum(_postings.c.picos))
            .join(_transactions, _transactions.c.id == _postings.c.transaction_id)
            .where(*conditions)
        )
        return int(self._connection.execute(query).scalar_one() or 0)


def _within(period: Period) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    booked_at = _transactions.c.booked_at
    return booked_at >= period.start, booked_at < period.end


def _settled_within(
    query: AnySelect, tenant: Organisation | Department, period: Period
) -> AnySelect:
    """Events of a tenant that were settled in a period."""
    owner = _events.c.department_id if isinstance(tenant, Department) else _events.c.organisation_id
    return query.where(
        owner == tenant.id, _events.c.settled_at >= period.start, _events.c.settled_at < period.end
    )
