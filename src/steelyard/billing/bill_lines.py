"""What an invoice has beside usage and adjustments, as exports show it: credit, tax and rounding.

With them the rows of a closed period add up to the total of its invoice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from steelyard.billing.invoice import Invoice
from steelyard.money import read_decimal

BillKind = Literal["not_covered", "promotional_credit", "tax", "rounding"]


@dataclass(frozen=True, slots=True)
class BillLine:
    """`picos` are what it adds to the total; `department` is None where the organisation pays."""

    kind: BillKind
    department_id: str | None
    department: str | None
    invoice: str
    picos: int


def bill_lines(invoice: Invoice, departments: Mapping[str, tuple[str, str]]) -> Iterator[BillLine]:
    """In the order of the invoice; `departments` are ids and names, by path."""
    for section in invoice.sections:
        department_id, department = departments.get(section.payer, (None, None))
        amounts: Mapping[BillKind, int] = {
            "not_covered": -read_decimal(section.not_covered),
            "promotional_credit": -read_decimal(section.promotional),
            "tax": read_decimal(section.tax),
            "rounding": read_decimal(section.rounding),
        }
        for kind, picos in amounts.items():
            if picos:
                yield BillLine(kind, department_id, department, invoice.number, picos)
