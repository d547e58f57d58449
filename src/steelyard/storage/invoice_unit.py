"""Invoices in a unit of work, and what they are made from."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, text

from steelyard.billing.hourly_sums import HOUR_CHARACTERS
from steelyard.billing.invoice import AdjustmentRow, Source, UsageRow
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.statement import Period
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, read_draws
from steelyard.storage import schema
from steelyard.storage.fund_unit import CLOSING_LOCK, SqlFundUnit
from steelyard.storage.usage_sums import (
    cut_span,
    funding_by_grant,
    request_sum,
    usage_sums,
)
from steelyard.timestamp import read_timestamp, write_timestamp

_paths, _invoices, _adjustments = schema.usage_paths, schema.invoices, schema.adjustments
_departments, _transactions = schema.departments, schema.ledger_transactions


class SqlInvoiceReports:
    """Implements InvoiceReports."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def used(
        self, organisation_id: str, *, period: Period, earlier: Sequence[IssuedInvoice]
    ) -> list[UsageRow]:
        names = self._names(organisation_id)
        span = cut_span(self.connection, list(names), start=period.start, end=period.end)
        late_before = write_timestamp(period.start)[:HOUR_CHARACTERS]
        sums = usage_sums(self.connection, list(names), span, late_before=late_before)
        merged: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
        for (path_id, meter, picos_per_unit, late_hour), (count, picos) in sums.items():
            used_in = _invoice_of(late_hour, earlier)
            total = merged[(*names[path_id], meter, picos_per_unit, used_in)]
            total[0] += count
            total[1] += picos
        return [
            UsageRow(*place, count=count, picos=picos, used_in=used_in)
            for (*place, used_in), (count, picos) in merged.items()
        ]

    def requests_in(self, organisation_id: str, *, period: Period) -> int:
        path_ids = list(self._names(organisation_id))
        span = cut_span(self.connection, path_ids, start=period.start, end=period.end)
        return request_sum(self.connection, path_ids, span)

    def paid_by(self, organisation_id: str, *, period: Period) -> Mapping[tuple[str, Source], int]:
        sums: dict[tuple[str, Source], int] = defaultdict(int)
        names, sources = self._names(organisation_id), self._sources(self.payers(organisation_id))
        for payer_id in {name[0] for name in names.values()}:
            path_ids = [path_id for path_id, name in names.items() if name[0] == payer_id]
            span = cut_span(self.connection, path_ids, start=period.start, end=period.end)
            funding = funding_by_grant(self.connection, payer_id, path_ids, span)
            for grant_id, picos in funding.items():
                sums[payer_id, sources[grant_id]] += picos
        return sums

    def adjusted(self, organisation_id: str, *, period: Period) -> list[AdjustmentRow]:
        query = (
            select(
                _adjustments,
                _transactions.c.booked_at,
                func.coalesce(_transactions.c.reason, "").label("why"),
                _departments.c.name.label("department"),
            )
            .join(_transactions, _transactions.c.id == _adjustments.c.id)
            .outerjoin(_departments, _departments.c.id == _adjustments.c.department_id)
            .where(
                _adjustments.c.organisation_id == organisation_id,
                _adjustments.c.billed_at >= period.start,
                _adjustments.c.billed_at < period.end,
            )
        )
        sources = self._sources(self.payers(organisation_id))
        return [_adjustment_row(row, sources) for row in self.connection.execute(query)]

    def versions_used(self, organisation_id: str, *, period: Period) -> list[str]:
        query = select(_paths.c.id, _paths.c.price_version).where(
            _paths.c.organisation_id == organisation_id
        )
        versions = {row.id: row.price_version for row in self.connection.execute(query)}
        span = cut_span(self.connection, list(versions), start=period.start, end=period.end)
        sums = usage_sums(self.connection, list(versions), span)
        return sorted({versions[path_id] for path_id, *_ in sums})

    def payers(self, organisation_id: str) -> Mapping[str, str]:
        organisations = schema.organisations
        query = select(organisations.c.name).where(organisations.c.id == organisation_id)
        name: str = self.connection.execute(query).scalar_one()
        own = (
            select(_departments.c.id, _departments.c.name)
            .where(
                _departments.c.organisation_id == organisation_id,
                _departments.c.pays_from == "department",
            )
            .order_by(_departments.c.name)
        )
        departments = {row.id: f"{name}/{row.name}" for row in self.connection.execute(own)}
        return {organisation_id: name, **departments}

    def invoices(self, *, organisation_id: str | None = None) -> list[IssuedInvoice]:
        query = select(_invoices).order_by(_invoices.c.issued_at, _invoices.c.number)
        if organisation_id is not None:
            query = query.where(_invoices.c.organisation_id == organisation_id)
        return [_issued(row) for row in self.connection.execute(query)]

    def _names(self, organisation_id: str) -> dict[int, tuple[str, str, str, str, str]]:
        """Payer, department, project, key and model of every path; none is left out for want of a
        name."""
        projects, keys = schema.projects, schema.virtual_keys
        query = (
            select(
                _paths.c.id,
                _paths.c.payer_id,
                func.coalesce(_departments.c.name, _paths.c.department_id).label("department"),
                func.coalesce(projects.c.name, "").label("project"),
                func.coalesce(keys.c.name, _paths.c.key_id).label("key"),
                _paths.c.model,
            )
            .outerjoin(_departments, _departments.c.id == _paths.c.department_id)
            .outerjoin(projects, projects.c.id == _paths.c.project_id)
            .outerjoin(keys, keys.c.id == _paths.c.key_id)
            .where(_paths.c.organisation_id == organisation_id)
        )
        return {
            row.id: (row.payer_id, row.department, row.project, row.key, row.model)
            for row in self.connection.execute(query)
        }

    def _sources(self, payers: Mapping[str, str]) -> dict[str, Source]:
        """What kind of money each grant of these payers is; debts are settled on credit."""
        grants = schema.grants
        query = select(grants.c.id, grants.c.kind).where(grants.c.payer_id.in_(list(payers)))
        kinds: dict[str, Source] = {row.id: row.kind for row in self.connection.execute(query)}
        return {**kinds, CREDIT_LINE: "credit_line", INVOICED: "credit_line"}


class SqlInvoiceUnit(SqlFundUnit, SqlInvoiceReports):
    """Implements InvoiceUnit."""

    def lock_closing(self) -> None:
        # A writer on SQLite is alone anyway.
        if self.connection.dialect.name == "postgresql":
            self.connection.execute(text(f"SELECT pg_advisory_xact_lock({CLOSING_LOCK})"))

    def insert_invoice(self, invoice: IssuedInvoice) -> None:
        self.connection.execute(
            insert(_invoices),
            {
                "id": invoice.id,
                "number": invoice.number,
                "kind": invoice.kind,
                "organisation_id": invoice.organisation_id,
                "period_start": invoice.period.start,
                "period_end": invoice.period.end,
                "issued_at": invoice.issued_at,
                "corrects": invoice.corrects,
                "command_id": invoice.command_id,
                "canonical": invoice.canonical,
            },
        )


def _invoice_of(late_hour: str, earlier: Sequence[IssuedInvoice]) -> str | None:
    """The invoice of the period in which an hour lies; None for one of the period itself."""
    if not late_hour:
        return None
    moment = read_timestamp(f"{late_hour}:00:00Z")
    numbers = (i.number for i in earlier if i.period.start <= moment < i.period.end)
    # An hour that a period begins in the middle of belongs to the one before.
    return next(numbers, earlier[0].number if earlier else None)


def _adjustment_row(row: Row[Any], sources: Mapping[str, Source]) -> AdjustmentRow:
    sign = 1 if row.amount > 0 else -1
    by_source: dict[Source, int] = defaultdict(int)
    for draw in read_draws(row.draws):
        by_source[sources[draw.grant_id]] += sign * draw.picos
    return AdjustmentRow(
        payer_id=row.payer_id,
        id=row.id,
        kind=row.kind,
        department=row.department,
        reference=row.reference,
        reason=row.why,
        booked_at=row.booked_at,
        picos=row.amount,
        by_source=by_source,
    )


def _issued(row: Row[Any]) -> IssuedInvoice:
    start: datetime = row.period_start
    return IssuedInvoice(
        id=row.id,
        number=row.number,
        kind=row.kind,
        organisation_id=row.organisation_id,
        period=Period(start, row.period_end),
        issued_at=row.issued_at,
        corrects=row.corrects,
        command_id=row.command_id,
        canonical=row.canonical,
    )
