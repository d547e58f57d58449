"""`steelyard invoice`: close a period, and hand its invoice over."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.access.tenant import Organisation
from steelyard.app.stores import Stores
from steelyard.billing.billing_period import month_of, read_month, read_period
from steelyard.billing.invoice import Invoice, InvoiceSection, read_invoice
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.invoice_words import Language
from steelyard.billing.period_closing import close_period, draft_invoice
from steelyard.billing.statement import Period
from steelyard.entrypoints.cli.credit_notes import credit_note, credit_note_row, show_credit_note
from steelyard.entrypoints.cli.funds import IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.invoice_formats import Format, render
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    make_table,
    print_json,
    show_rows,
    stores_opened,
)
from steelyard.money import read_decimal
from steelyard.timestamp import write_timestamp

invoices = typer.Typer(
    no_args_is_help=True, help="Invoices: close a period, hand over what it cost."
)

OrganisationArgument = Annotated[str, typer.Argument(help="The organisation.")]
InvoiceArgument = Annotated[str, typer.Argument(metavar="INVOICE", help="Its number, or its id.")]
PeriodOption = Annotated[
    str | None, typer.Option(help="A month of the organisation's time zone, as 2026-10.")
]
FromOption = Annotated[str | None, typer.Option("--from", help="RFC 3339, instead of a month.")]
ToOption = Annotated[str | None, typer.Option("--to", help="RFC 3339, instead of a month.")]


def register(application: typer.Typer) -> None:
    example = 'Example: `steelyard invoice credit-note acme-0001 --amount 5 --reason "agreed"`'
    invoices.command("credit-note", epilog=example)(credit_note)
    application.add_typer(invoices, name="invoice")


@invoices.command("close", epilog="Example: `steelyard invoice close acme --period 2026-10`")
def close(
    organisation: OrganisationArgument,
    period: PeriodOption = None,
    start: FromOption = None,
    end: ToOption = None,
    reason: ReasonOption = "period closed",
    command_id: IdOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the invoice as it would be; close nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Close a period for ever and issue its invoice; by default the month before this one."""
    with stores_opened() as stores:
        found = stores.access.find_organisation(organisation)
        closing = _read_period(stores, found, period, start, end)
        if dry_run:
            draft = draft_invoice(stores.books, found, period=closing, at=stores.clock.now())
            _show(draft, None, as_json=json, title="draft, nothing is closed")
            return
        command = command_of(stores, reason, command_id)
        closed = close_period(stores.books, found, period=closing, command=command)
        waiting = _waiting(stores, found, closing)
    title = "period closed before" if closed.is_repeat else "period closed"
    _show(closed.invoice, closed.issued, as_json=json, title=title)
    if waiting and not json:
        console.print(Text(waiting, style="yellow"))


@invoices.command("list", epilog="Example: `steelyard invoice list acme`")
def list_invoices(
    organisation: Annotated[str | None, typer.Argument(help="Only of this one.")] = None,
    json: JsonFlag = False,
) -> None:
    """List invoices and credit notes, the oldest first."""
    with stores_opened() as stores:
        owner = stores.access.find_organisation(organisation).id if organisation else None
        with stores.invoices.snapshot() as snapshot:
            issued = snapshot.invoices(organisation_id=owner)
    rows = [_row(one) for one in issued]
    columns = ["number", "kind", "from", "until", "total", "currency", "issued_at"]
    show_rows(rows, columns, as_json=json, empty="no invoices yet", right=("total",))


@invoices.command("show", epilog="Example: `steelyard invoice show acme-0001`")
def show_invoice(invoice: InvoiceArgument, json: JsonFlag = False) -> None:
    """Show an invoice; with --json the document whose hash is its id, for reading."""
    with stores_opened() as stores:
        issued = stores.invoices.find(invoice)
    if issued.kind == "credit_note":
        show_credit_note(issued, as_json=json, title=f"credit note {issued.number}")
        return
    _show(read_invoice(issued.canonical), issued, as_json=json, title=f"invoice {issued.number}")


@invoices.command(
    "export", epilog="Example: `steelyard invoice export acme-0001 --format pdf --out october.pdf`"
)
def export(
    invoice: InvoiceArgument,
    file_format: Annotated[Format, typer.Option("--format", help="What to write.")] = "json",
    language: Annotated[Language, typer.Option(help="Of HTML and PDF.")] = "en",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; standard output unless given.")
    ] = None,
) -> None:
    """Write an invoice: the canonical JSON whose hash is its id, or a rendering of it."""
    with stores_opened() as stores:
        issued = stores.invoices.find(invoice)
    written = render(issued, file_format, language=language)
    if out is None:
        typer.echo(written, nl=False)
        return
    out.write_bytes(written)
    console.print(Text(f"{issued.number} written to {out}", style="green"))


def _read_period(
    stores: Stores,
    organisation: Organisation,
    month: str | None,
    start: str | None,
    end: str | None,
) -> Period:
    """The period that was named: a month, two moments, or the month before this one."""
    zone = organisation.time_zone
    if month is None and start is None and end is None:
        this_month = read_month(month_of(stores.clock.now(), time_zone=zone), time_zone=zone)
        month = _month_before(this_month.start, zone)
    return read_period(month=month, start=start, end=end, time_zone=zone)


def _month_before(moment: datetime, time_zone: str) -> str:
    year, _, number = month_of(moment, time_zone=time_zone).partition("-")
    return f"{int(year) - 1:04}-12" if number == "01" else f"{year}-{int(number) - 1:02}"


def _waiting(stores: Stores, organisation: Organisation, period: Period) -> str:
    """What of this period is not on the invoice because nobody knows yet what it costs."""
    with stores.reports.snapshot() as snapshot:
        picos = sum(
            snapshot.suspended(payer_id, before=period.end)
            for payer_id in (organisation.id, *_own_payers(stores, organisation))
        )
    if not picos:
        return ""
    return "events of this period wait in suspense: decisions on them go on a later invoice"


def _own_payers(stores: Stores, organisation: Organisation) -> list[str]:
    return [
        department.id
        for department in stores.access.departments()
        if department.organisation.id == organisation.id and department.payer_id == department.id
    ]


def _row(issued: IssuedInvoice) -> dict[str, Any]:
    if issued.kind == "credit_note":
        return credit_note_row(issued)
    document = read_invoice(issued.canonical)
    return {
        "number": issued.number,
        "id": issued.id,
        "kind": issued.kind,
        "organisation": document.organisation.name,
        "from": write_timestamp(issued.period.start),
        "until": write_timestamp(issued.period.end),
        "total": document.total,
        "to_pay": document.to_pay,
        "currency": document.currency,
        "issued_at": write_timestamp(issued.issued_at),
        "corrects": issued.corrects,
    }


def _show(invoice: Invoice, issued: IssuedInvoice | None, *, as_json: bool, title: str) -> None:
    if as_json:
        import msgspec

        document = msgspec.to_builtins(invoice)
        print_json(document | ({"id": issued.id, "kind": issued.kind} if issued else {}))
        return
    console.print(Text(title, style="bold green"))
    facts = {
        "number": invoice.number,
        "id": issued.id if issued else None,
        "organisation": invoice.organisation.name,
        "period": invoice.period.name,
        "from": invoice.period.start,
        "until": invoice.period.end,
        "requests": invoice.requests,
    }
    _print_fields({name: str(value) for name, value in facts.items() if value is not None})
    for section in invoice.sections:
        _print_section(invoice, section, is_only=len(invoice.sections) == 1)
    console.print(Text(f"  total   {invoice.total} {invoice.currency}", style="bold"))
    console.print(Text(f"  to pay  {invoice.to_pay} {invoice.currency}", style="bold"))


def _print_section(invoice: Invoice, section: InvoiceSection, *, is_only: bool) -> None:
    columns = ["used_in", "department", "project", "key", "model", "meter", "count", "unit_price"]
    rows: list[dict[str, Any]] = [
        {name: getattr(line, name) for name in (*columns, "amount")} for line in section.lines
    ]
    shown = [name for name in columns if any(row[name] is not None for row in rows)]
    if not is_only:
        console.print(Text(f"\n  {section.payer}", style="bold"))
    if rows:
        right = ("count", "unit_price", "amount")
        console.print(make_table(rows, [*shown, "amount"], right=right))
    if section.adjustments:
        adjusted = [
            {n: getattr(a, n) for n in ("kind", "department", "reason", "amount")}
            for a in section.adjustments
        ]
        console.print(
            make_table(adjusted, ["kind", "department", "reason", "amount"], right=("amount",))
        )
    sums = {
        "usage": section.usage,
        "not covered": section.not_covered,
        "promotional credit": section.promotional,
        "adjustments in your favour": section.adjusted,
        "net": section.net,
        f"tax {invoice.tax_percent} %": section.tax,
        "rounding": section.rounding,
        "total": section.total,
        "paid from the balance": section.from_balance,
        "to pay": section.to_pay,
    }
    always = {"usage", "net", "total"}
    shown_sums = {n: v for n, v in sums.items() if n in always or read_decimal(v)}
    _print_fields({name: f"{value} {invoice.currency}" for name, value in shown_sums.items()})


def _print_fields(fields: dict[str, str]) -> None:
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        console.print(Text.assemble((f"  {name:<{width}}  ", "dim"), value))
