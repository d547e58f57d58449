"""Columns of exported files, and the plain export of usage: one row for each usage line and each
adjustment."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from steelyard.access.tenant import Organisation
from steelyard.billing.bill_lines import BillLine
from steelyard.billing.export_lines import AdjustmentLine, ExportLine
from steelyard.billing.usage_line import UsageLine
from steelyard.money import write_decimal
from steelyard.timestamp import write_timestamp

ColumnKind = Literal["text", "decimal", "moment"]
# Decimals are written out in full, moments are RFC 3339: a row is text all through.
ExportRow = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: ColumnKind = "text"


USAGE_COLUMNS: Final[Sequence[Column]] = (
    Column("kind"),
    Column("organisation"),
    Column("department"),
    Column("project"),
    Column("key"),
    Column("model"),
    Column("upstream"),
    Column("meter"),
    Column("count", "decimal"),
    Column("unit_price", "decimal"),
    Column("amount", "decimal"),
    Column("currency"),
    Column("price_version"),
    Column("used_from", "moment"),
    Column("billed_from", "moment"),
    Column("reference"),
    Column("invoice"),
)


def usage_rows(
    organisation: Organisation, lines: Iterable[ExportLine], *, invoice: str | None = None
) -> Iterator[tuple[ExportRow, int]]:
    """Each row with the picos that it adds to the bill."""
    for line in lines:
        named = {
            "organisation": organisation.name,
            "currency": organisation.currency,
            "invoice": invoice,
        }
        row = _row(line)
        yield {**named, **row}, line.picos


def write_moment(moment: datetime) -> str:
    """RFC 3339 in UTC, with a fraction of a second only where there is one."""
    return write_timestamp(moment).replace(".000000Z", "Z")


def _row(line: ExportLine) -> ExportRow:
    if isinstance(line, UsageLine):
        return _usage_row(line)
    return _adjustment_row(line) if isinstance(line, AdjustmentLine) else _bill_row(line)


def _bill_row(line: BillLine) -> ExportRow:
    return {
        "kind": line.kind,
        "department": line.department,
        "amount": write_decimal(line.picos),
        "reference": line.invoice,
    }


def _usage_row(line: UsageLine) -> ExportRow:
    return {
        "kind": "usage",
        "department": line.department,
        "project": line.project,
        "key": line.key,
        "model": line.model,
        "upstream": line.upstream,
        "meter": line.meter,
        "count": str(line.count),
        "unit_price": write_decimal(line.picos_per_unit),
        "amount": write_decimal(line.picos),
        "price_version": line.price_version,
        "used_from": write_moment(line.used_from),
        "billed_from": write_moment(line.billed_from),
    }


def _adjustment_row(line: AdjustmentLine) -> ExportRow:
    return {
        "kind": line.kind,
        "department": line.department,
        "amount": write_decimal(line.picos),
        "billed_from": write_moment(line.billed_at),
        "reference": line.reference,
    }
