"""Invoices and credit notes as CSV: a row for each line, adjustment, credit and tax; the amounts add
up to the total."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from steelyard.billing.credit_note import CreditNote
from steelyard.billing.invoice import Invoice, InvoiceSection
from steelyard.money import read_decimal, write_decimal

COLUMNS: Final[Sequence[str]] = (
    "invoice",
    "payer",
    "kind",
    "department",
    "project",
    "key",
    "model",
    "meter",
    "count",
    "unit_price",
    "amount",
    "currency",
    "used_in",
    "reference",
    "reason",
)
Row = dict[str, str]


def write_invoice_csv(rows: Iterable[Row]) -> str:
    """The whole table, with its header; lines end as RFC 4180 says."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_harmless(row.get(column, "")) for column in COLUMNS])
    return text.getvalue()


def invoice_rows(invoice: Invoice) -> Iterator[Row]:
    """The rows; what lowers the total is negative."""
    total = 0
    for section in invoice.sections:
        for row in _section_rows(section):
            total += read_decimal(row["amount"])
            yield {
                "invoice": invoice.number,
                "payer": section.payer,
                "currency": invoice.currency,
                **row,
            }
    assert total == read_decimal(invoice.total), f"{invoice.number}: {total} is not its total"


def credit_note_rows(note: CreditNote) -> Iterator[Row]:
    """A credit note lowers what its invoice billed, so its amounts are negative."""
    for kind, amount in (("credit_note", note.net), ("tax", note.tax)):
        yield {
            "invoice": note.number,
            "payer": note.payer,
            "kind": kind,
            "amount": _negative(amount),
            "currency": note.currency,
            "reference": note.corrects.number,
            "reason": note.reason,
        }


def _section_rows(section: InvoiceSection) -> Iterator[Row]:
    for line in section.lines:
        yield {
            "kind": "usage",
            "department": line.department,
            "project": line.project or "",
            "key": line.key,
            "model": line.model,
            "meter": line.meter,
            "count": line.count,
            "unit_price": line.unit_price,
            "amount": line.amount,
            "used_in": line.used_in or "",
        }
    for adjustment in section.adjustments:
        yield {
            "kind": adjustment.kind,
            "department": adjustment.department or "",
            "amount": _negative(adjustment.amount),
            "reference": adjustment.reference,
            "reason": adjustment.reason,
        }
    for kind, amount in (
        ("not_covered", _negative(section.not_covered)),
        ("promotional_credit", _negative(section.promotional)),
        ("tax", section.tax),
        ("rounding", section.rounding),
    ):
        if read_decimal(amount):
            yield {"kind": kind, "amount": amount}


def _negative(amount: str) -> str:
    return write_decimal(-read_decimal(amount))


def _harmless(value: str) -> str:
    """A spreadsheet must not take a reason or a name for a formula; amounts are never one."""
    is_formula = value[:1] in {"=", "+", "@", "\t", "\r"} or (
        value.startswith("-") and not value[1:2].isdigit()
    )
    return f"'{value}" if is_formula else value
