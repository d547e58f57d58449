"""`steelyard invoice credit-note`: give back what a closed invoice billed."""

from typing import Annotated, Any

import msgspec
import typer

from steelyard.billing.credit_note import CreditNote, issue_credit_note, read_credit_note
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.entrypoints.cli.funds import IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.output import JsonFlag, show, stores_opened
from steelyard.money import read_decimal, write_decimal
from steelyard.timestamp import write_timestamp


def credit_note(
    invoice: Annotated[str, typer.Argument(metavar="INVOICE", help="Its number, or its id.")],
    reason: ReasonOption,
    amount: Annotated[
        str | None, typer.Option(help="With its tax; all that is left of the invoice unless given.")
    ] = None,
    payer: Annotated[
        str | None,
        typer.Option(help="ORG/DEPARTMENT with a balance of its own; else the organisation."),
    ] = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Give back what an invoice billed, or a part of it; the invoice stays as it is."""
    with stores_opened() as stores:
        credited = issue_credit_note(
            stores.books,
            stores.invoices.find(invoice),
            payer=payer,
            picos=None if amount is None else read_decimal(amount),
            command=command_of(stores, reason, command_id),
        )
    title = "credit note issued before" if credited.is_repeat else "credit note issued"
    show_credit_note(credited.issued, as_json=json, title=title)


def show_credit_note(issued: IssuedInvoice, *, as_json: bool, title: str) -> None:
    note = read_credit_note(issued.canonical)
    if as_json:
        document: dict[str, Any] = msgspec.to_builtins(note)
        show(document | {"id": issued.id, "kind": issued.kind}, as_json=True)
        return
    fields = {
        "number": note.number,
        "id": issued.id,
        "corrects": note.corrects.number,
        "payer": note.payer,
        "reason": note.reason,
        "net": f"{note.net} {note.currency}",
        f"tax {note.tax_percent} %": f"{note.tax} {note.currency}",
        "total": f"{note.total} {note.currency}",
        "off debts": _unless_zero(note, note.off_debts),
        "to balance": _unless_zero(note, note.to_balance),
        "left": f"{note.left} {note.currency}",
    }
    show(fields, as_json=False, title=title)


def credit_note_row(issued: IssuedInvoice) -> dict[str, Any]:
    """As a row among invoices, which it lowers."""
    note = read_credit_note(issued.canonical)
    return {
        "number": issued.number,
        "id": issued.id,
        "kind": issued.kind,
        "organisation": note.organisation.name,
        "from": write_timestamp(issued.period.start),
        "until": write_timestamp(issued.period.end),
        "total": f"-{note.total}",
        "to_pay": write_decimal(-read_decimal(note.off_debts)),
        "currency": note.currency,
        "issued_at": write_timestamp(issued.issued_at),
        "corrects": issued.corrects,
    }


def _unless_zero(note: CreditNote, amount: str) -> str | None:
    return f"{amount} {note.currency}" if read_decimal(amount) else None
