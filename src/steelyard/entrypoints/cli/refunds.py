"""`steelyard refund | hold`: what an event cost goes back, and holds that nobody closed."""

from typing import Annotated, Any

import typer

from steelyard.billing.commands import Booked
from steelyard.billing.open_holds import list_open_holds, release_open_hold
from steelyard.billing.refund import refund_event, undo_refund
from steelyard.entrypoints.cli.funds import (
    TAKES_NEGATIVE,
    IdOption,
    ReasonOption,
    command_of,
)
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.ledger.hold import Hold
from steelyard.money import read_decimal, write_decimal
from steelyard.timestamp import write_timestamp

refunds = typer.Typer(no_args_is_help=True, help="Refunds: what events cost goes back.")
holds = typer.Typer(no_args_is_help=True, help="Holds: money set aside for open requests.")


def register(application: typer.Typer) -> None:
    application.add_typer(refunds, name="refund")
    application.add_typer(holds, name="hold")


@refunds.command(
    "event",
    context_settings=TAKES_NEGATIVE,
    epilog='Example: `steelyard refund event 01a20be2-6f1b-774b-814c-cac873a757d4 --reason "bad"`',
)
def event(
    event_id: Annotated[str, typer.Argument(metavar="EVENT", help="The event's id.")],
    reason: ReasonOption,
    amount: Annotated[
        str | None, typer.Option(help="Only so much of it; default: all that is left.")
    ] = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Give back what an event cost, to where it was taken from."""
    picos = None if amount is None else read_decimal(amount)
    with stores_opened() as stores:
        command = command_of(stores, reason, command_id)
        booked = refund_event(stores.books, event_id, picos=picos, command=command)
    show(_document(booked, event_id=event_id), as_json=json, title="refunded")


@refunds.command(
    "undo",
    epilog='Example: `steelyard refund undo 01a20be2-72aa-7f5c-9d80-9c1bad6c90ed --reason "error"`',
)
def undo(
    refund_id: Annotated[str, typer.Argument(metavar="REFUND", help="The refund's id.")],
    reason: ReasonOption,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Charge again what a refund gave back."""
    with stores_opened() as stores:
        command = command_of(stores, reason, command_id)
        booked = undo_refund(stores.books, refund_id, command=command)
    show(_document(booked, refund_id=refund_id), as_json=json, title="refund undone")


@holds.command("list", epilog="Example: `steelyard hold list --unresolved`")
def list_holds(
    unresolved: Annotated[
        bool, typer.Option("--unresolved", help="Only those that are open for too long.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many holds.")] = 100,
    json: JsonFlag = False,
) -> None:
    """List open holds, the oldest first."""
    with stores_opened() as stores:
        found = list_open_holds(stores.books, only_unresolved=unresolved, limit=limit)
    columns = ["placed_at", "status", "amount", "currency", "source", "id"]
    empty = "no hold is open"
    show_rows([_hold(hold) for hold in found], columns, as_json=json, empty=empty, right=["amount"])


@holds.command(
    "release",
    epilog='Example: `steelyard hold release 01a20be2-6f1b-774b-814c-cac873a757d4 --reason "lost"`',
)
def release(
    hold_id: Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id.")],
    reason: ReasonOption,
    json: JsonFlag = False,
) -> None:
    """Give back what a hold has set aside, where no event will ever come."""
    with stores_opened() as stores:
        command = command_of(stores, reason)
        released = release_open_hold(stores.books, hold_id, command=command)
    show(_hold(released), as_json=json, title="hold released")


def _document(booked: Booked, **about: str) -> dict[str, Any]:
    postings = booked.transaction.postings
    return {
        **about,
        "amount": write_decimal(sum(posting.picos for posting in postings if posting.picos > 0)),
        "currency": postings[0].account.currency,
        "transaction_id": booked.transaction.id,
        "is_repeat": booked.is_repeat,
    }


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "id": hold.id,
        "status": hold.status,
        "amount": write_decimal(hold.amount.picos),
        "currency": hold.amount.currency,
        "payer_id": hold.payer_id,
        "source": hold.source,
        "placed_at": write_timestamp(hold.placed_at),
    }
