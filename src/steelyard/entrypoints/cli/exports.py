"""`steelyard export usage | focus`: what a period cost, as files for other programs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from steelyard.access.tenant import Organisation
from steelyard.app.stores import Stores
from steelyard.billing.bill_lines import bill_lines
from steelyard.billing.billing_period import read_period
from steelyard.billing.export_columns import USAGE_COLUMNS, Column, ExportRow, usage_rows
from steelyard.billing.export_lines import ExportLine, ExportSum
from steelyard.billing.focus import FocusBill, FocusVersion, focus_columns, focus_rows
from steelyard.billing.invoice import Invoice, read_invoice
from steelyard.billing.statement import Period
from steelyard.entrypoints.cli.output import JsonFlag, show, stores_opened
from steelyard.money import read_decimal, write_decimal
from steelyard.storage.export_files import export_file
from steelyard.timestamp import write_timestamp

exports = typer.Typer(no_args_is_help=True, help="Exports: what a period cost, for other programs.")


class FileFormat(StrEnum):
    csv = "csv"
    parquet = "parquet"


class Version(StrEnum):
    v1_2 = "1.2"
    v1_4 = "1.4"


OrganisationArgument = Annotated[str, typer.Argument(help="organisation")]
MonthOption = Annotated[
    str | None, typer.Option("--period", help="A month where the organisation is, as in 2026-10.")
]
StartOption = Annotated[str | None, typer.Option("--from", help="RFC 3339, with --to.")]
EndOption = Annotated[str | None, typer.Option("--to", help="RFC 3339; not part of it.")]
FormatOption = Annotated[FileFormat, typer.Option("--format", help="csv or parquet.")]
OutOption = Annotated[Path, typer.Option("--out", help="The file; one that is there is replaced.")]

Lines = Iterable[ExportLine]
Rows = Iterator[tuple[ExportRow, int]]
# The last is the number of the invoice, where the period is closed.
RowsOf = Callable[[Organisation, Period, Lines, str | None], Rows]


def register(application: typer.Typer) -> None:
    application.add_typer(exports, name="export")


@exports.command(
    "usage", epilog="Example: `steelyard export usage acme --period 2026-10 --out acme.csv`"
)
def usage(
    organisation: OrganisationArgument,
    out: OutOption,
    period: MonthOption = None,
    start: StartOption = None,
    end: EndOption = None,
    file_format: FormatOption = FileFormat.csv,
    json: JsonFlag = False,
) -> None:
    """Write what was used hour by hour, at what price, and what was adjusted."""

    def rows_of(tenant: Organisation, _: Period, lines: Lines, invoice: str | None) -> Rows:
        return usage_rows(tenant, lines, invoice=invoice)

    said = (organisation, period, start, end)
    _export(said, USAGE_COLUMNS, rows_of, out=out, file_format=file_format, as_json=json)


@exports.command(
    "focus", epilog="Example: `steelyard export focus acme --period 2026-10 --out acme.csv`"
)
def focus(
    organisation: OrganisationArgument,
    out: OutOption,
    period: MonthOption = None,
    start: StartOption = None,
    end: EndOption = None,
    file_format: FormatOption = FileFormat.csv,
    focus_version: Annotated[Version, typer.Option(help="1.2 or 1.4.")] = Version.v1_2,
    issuer: Annotated[str, typer.Option(help="Who sends the bill.")] = "Steelyard",
    json: JsonFlag = False,
) -> None:
    """Write the bill of a period as FOCUS Cost and Usage."""
    version: FocusVersion = "1.2" if focus_version is Version.v1_2 else "1.4"

    def rows_of(tenant: Organisation, span: Period, lines: Lines, invoice: str | None) -> Rows:
        return focus_rows(FocusBill(tenant, span, issuer, version, invoice), lines)

    columns = focus_columns(version)
    said = (organisation, period, start, end)
    _export(said, columns, rows_of, out=out, file_format=file_format, as_json=json)


def _export(
    said: tuple[str, str | None, str | None, str | None],
    columns: Sequence[Column],
    rows_of: RowsOf,
    *,
    out: Path,
    file_format: FileFormat,
    as_json: bool,
) -> None:
    """Row by row; the file is there only if its rows add up to what the books billed, and those of a
    closed period to the total of its invoice."""
    name, month, start, end = said
    with stores_opened() as stores:
        tenant = stores.access.find_organisation(name)
        period = read_period(month=month, start=start, end=end, time_zone=tenant.time_zone)
        exported = ExportSum(tenant.currency)
        invoice = _invoice_of(stores, tenant, period)
        number = invoice.number if invoice else None
        with (
            stores.exports.snapshot() as snapshot,
            export_file(out, columns, file_format=file_format.value) as write,
        ):
            lines = chain(
                snapshot.usage_lines(tenant, period=period),
                snapshot.adjustment_lines(tenant, period=period),
            )
            for row, picos in rows_of(tenant, period, lines, number):
                write(row)
                exported.add(picos)
            exported.expect(snapshot.billed(tenant, period=period))
            if invoice:
                beside = bill_lines(invoice, _own_payers(stores, tenant))
                for row, picos in rows_of(tenant, period, beside, number):
                    write(row)
                    exported.add(picos)
                exported.expect_invoiced(read_decimal(invoice.total))
    document = {
        "organisation": name,
        "from": write_timestamp(period.start),
        "to": write_timestamp(period.end),
        "rows": exported.rows,
        "total": write_decimal(exported.picos),
        "currency": exported.currency,
        "invoice": number,
        "file": str(out),
    }
    show(document, as_json=as_json, title="exported")


def _invoice_of(stores: Stores, organisation: Organisation, period: Period) -> Invoice | None:
    issued = stores.invoices.of_period(organisation.id, period)
    return read_invoice(issued.canonical) if issued else None


def _own_payers(stores: Stores, organisation: Organisation) -> dict[str, tuple[str, str]]:
    return {
        department.path: (department.id, department.name)
        for department in stores.access.departments()
        if department.organisation.id == organisation.id and department.payer_id == department.id
    }
