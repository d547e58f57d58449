"""What verification makes invoices from again, beside the log."""

from collections.abc import Mapping

from sqlalchemy import select

from steelyard.access.tenant import Organisation
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.invoice_unit import SqlInvoiceReports


class SqlInvoiceAudit(SqlInvoiceReports):
    """Implements InvoiceAudit."""

    def organisations(self) -> Mapping[str, Organisation]:
        rows = self.connection.execute(select(schema.organisations))
        return {
            row.id: Organisation(
                row.id,
                row.name,
                Currency(row.currency),
                row.created_at,
                row.time_zone,
                row.tax_ppm,
                row.plan,
            )
            for row in rows
        }

    def names(self) -> Mapping[str, str]:
        tables = schema.departments, schema.projects, schema.virtual_keys
        return {
            row.id: row.name
            for table in tables
            for row in self.connection.execute(select(table.c.id, table.c.name))
        }
