"""Shared departments, their weights, and what was charged back."""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final

from sqlalchemy import Executable, delete, func, insert, select

from steelyard.billing.chargeback import Splits, Weights, split
from steelyard.billing.chargeback_books import PostedChargeback
from steelyard.billing.chargeback_report import DepartmentPlace
from steelyard.billing.statement import Period
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.invoice_unit import SqlInvoiceReports, SqlInvoiceUnit
from steelyard.storage.seal import sealed

_departments, _weights = schema.departments, schema.chargeback_weights
_chargebacks = schema.chargebacks
_events, _paths, _shares = schema.usage_events, schema.usage_paths, schema.event_shares
_adjustments = schema.adjustments
_OWN: Final = "department"


def _shares_in(organisation_id: str, period: Period) -> Executable:
    """What each bears of the events that another has paid for."""
    payer, bearer = _departments.alias("payer"), _departments.alias("bearer")
    return (
        select(
            payer.c.name.label("paid_by"),
            bearer.c.name.label("bearer"),
            func.sum(_shares.c.picos).label("picos"),
        )
        .join(_events, _events.c.id == _shares.c.event_id)
        .join(_paths, _paths.c.id == _events.c.path_id)
        .join(payer, payer.c.id == _paths.c.department_id)
        .join(bearer, bearer.c.id == _shares.c.department_id)
        .where(
            _paths.c.organisation_id == organisation_id,
            _events.c.billed_at >= period.start,
            _events.c.billed_at < period.end,
        )
        .group_by(payer.c.name, bearer.c.name)
    )


def _adjusted_in(organisation_id: str, period: Period) -> Executable:
    """Adjustments of events that are split, with the weights of those."""
    payer, bearer = _departments.alias("payer"), _departments.alias("bearer")
    return (
        select(
            _adjustments.c.id,
            _adjustments.c.amount,
            _shares.c.department_id,
            _shares.c.weight,
            payer.c.name.label("paid_by"),
            bearer.c.name.label("bearer"),
        )
        .join(_shares, _shares.c.event_id == _adjustments.c.reference)
        .join(payer, payer.c.id == _adjustments.c.department_id)
        .join(bearer, bearer.c.id == _shares.c.department_id)
        .where(
            _adjustments.c.organisation_id == organisation_id,
            _adjustments.c.billed_at >= period.start,
            _adjustments.c.billed_at < period.end,
        )
        .order_by(_adjustments.c.id, _shares.c.department_id)
    )


class SqlChargebackReports(SqlInvoiceReports):
    """Implements ChargebackReports."""

    def departments_of(self, organisation_id: str) -> Sequence[DepartmentPlace]:
        query = (
            select(_departments.c.id, _departments.c.name, _departments.c.pays_from)
            .where(_departments.c.organisation_id == organisation_id)
            .order_by(_departments.c.name)
        )
        return [
            DepartmentPlace(row.name, row.id if row.pays_from == _OWN else organisation_id)
            for row in self.connection.execute(query)
        ]

    def weights_of(self, organisation_id: str) -> Weights:
        shared = _departments.alias("shared")
        query = (
            select(shared.c.name.label("shared"), _departments.c.name, _weights.c.weight)
            .join(shared, shared.c.id == _weights.c.shared_department_id)
            .join(_departments, _departments.c.id == _weights.c.department_id)
            .where(shared.c.organisation_id == organisation_id)
        )
        weights: dict[str, dict[str, int]] = defaultdict(dict)
        for row in sorted(self.connection.execute(query)):
            weights[row.shared][row.name] = row.weight
        return dict(weights)

    def splits_of(self, organisation_id: str, *, period: Period) -> Splits:
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for row in self.connection.execute(_shares_in(organisation_id, period)):
            sums[row.paid_by, row.bearer] += int(row.picos)
        adjusted = self.connection.execute(_adjusted_in(organisation_id, period))
        for _, rows in groupby(adjusted, lambda row: row.id):
            parts = list(rows)
            weights = {part.department_id: part.weight for part in parts}
            shares = split(-int(parts[0].amount), weights)
            for part in parts:
                sums[part.paid_by, part.bearer] += shares[part.department_id]
        return dict(sums)

    def chargeback_of(self, invoice: str) -> PostedChargeback | None:
        query = select(_chargebacks).where(_chargebacks.c.invoice == invoice)
        row = self.connection.execute(query).one_or_none()
        if row is None:
            return None
        return PostedChargeback(row.id, row.organisation_id, row.invoice, row.canonical)


class SqlChargebackUnit(SqlInvoiceUnit, SqlChargebackReports):
    """Implements ChargebackUnit."""

    def replace_weights(self, shared_id: str, weights: Mapping[str, int]) -> None:
        self.connection.execute(
            delete(_weights).where(_weights.c.shared_department_id == shared_id)
        )
        for department_id, weight in sorted(weights.items()):
            row = {
                "shared_department_id": shared_id,
                "department_id": department_id,
                "weight": weight,
            }
            self.connection.execute(insert(_weights), row)

    def insert_chargeback(self, chargeback: PostedChargeback) -> None:
        row = {
            "id": chargeback.id,
            "organisation_id": chargeback.organisation_id,
            "invoice": chargeback.invoice,
            "canonical": chargeback.canonical,
        }
        self.connection.execute(insert(_chargebacks), sealed(_chargebacks, row))


class SqlChargebackStore:
    """Opens snapshots; `SqlChargebackReports` implements ChargebackReports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator[SqlChargebackReports]:
        with self._database.read() as connection:
            yield SqlChargebackReports(connection)
