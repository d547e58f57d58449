"""Shared departments, their weights, and what was charged back."""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import delete, insert, select

from steelyard.billing.chargeback import Weights
from steelyard.billing.chargeback_books import PostedChargeback
from steelyard.billing.chargeback_report import DepartmentPlace
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.invoice_unit import SqlInvoiceReports, SqlInvoiceUnit
from steelyard.storage.seal import sealed

_departments, _weights = schema.departments, schema.chargeback_weights
_chargebacks = schema.chargebacks
_OWN: Final = "department"


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
