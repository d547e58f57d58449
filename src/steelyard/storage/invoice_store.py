"""Reads invoices, and drafts of them, out of one moment of the books."""

from collections.abc import Generator
from contextlib import contextmanager

from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.statement import Period
from steelyard.errors import Refusal
from steelyard.storage.database import Database
from steelyard.storage.invoice_unit import SqlInvoiceReports


class InvoiceNotFound(Refusal):
    """There is no such invoice. 'steelyard invoice list' shows what there is."""

    code = "invoice_not_found"


class SqlInvoiceStore:
    """Opens snapshots; `SqlInvoiceReports` implements InvoiceReports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator[SqlInvoiceReports]:
        with self._database.read() as connection:
            yield SqlInvoiceReports(connection)

    def of_period(self, organisation_id: str, period: Period) -> IssuedInvoice | None:
        """The invoice of exactly this period, where it is closed."""
        with self.snapshot() as snapshot:
            for issued in snapshot.invoices(organisation_id=organisation_id):
                if issued.kind == "invoice" and issued.period == period:
                    return issued
        return None

    def find(self, wanted: str) -> IssuedInvoice:
        """The invoice or credit note of this number or id; raises InvoiceNotFound."""
        with self.snapshot() as snapshot:
            for issued in snapshot.invoices():
                if wanted in {issued.number, issued.id}:
                    return issued
        raise InvoiceNotFound(f"there is no invoice {wanted!r}")
