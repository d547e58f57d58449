"""`steelyard credit add | balance`: money in, and where it stands."""

import getpass
from typing import Annotated

import typer

from steelyard.access.store import AccessStore
from steelyard.access.tenant import Department, Organisation
from steelyard.billing.statement import read_balance
from steelyard.billing.top_up import add_credit, currency_of
from steelyard.entrypoints.cli.output import JsonFlag, show, stores_opened
from steelyard.money import Money, read_currency, read_decimal, write_decimal

credit = typer.Typer(no_args_is_help=True, help="Credit: money that tenants pay in.")

TenantArgument = Annotated[str, typer.Argument(help="organisation, or organisation/department")]


def register(application: typer.Typer) -> None:
    application.add_typer(credit, name="credit")
    application.command("balance", epilog="Example: `steelyard balance acme/research`")(balance)


def find_tenant(access: AccessStore, name: str) -> Organisation | Department:
    """The organisation or department of this name; raises TenantNotFound."""
    return access.find_department(name) if "/" in name else access.find_organisation(name)


# A negative amount looks like an option; it has to reach us to be refused with a good word.
@credit.command(
    "add",
    context_settings={"ignore_unknown_options": True},
    epilog='Example: `steelyard credit add acme 250.00 --reason "invoice 17"`',
)
def add(
    tenant: TenantArgument,
    amount: Annotated[str, typer.Argument(help="A decimal number of the currency, as in 12.50.")],
    currency: Annotated[
        str | None, typer.Option(help="Refuse unless the balance is in this currency.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the books.")] = "top-up",
    json: JsonFlag = False,
) -> None:
    """Top up a balance; the amount can be spent at once."""
    with stores_opened() as stores:
        found = find_tenant(stores.access, tenant)
        wanted = read_currency(currency) if currency else currency_of(found)
        money = Money(read_decimal(amount), wanted)
        transaction = add_credit(
            stores.books,
            found,
            amount=money,
            actor=getpass.getuser(),
            reason=reason,
            clock=stores.clock,
        )
        with stores.reports.snapshot() as snapshot:
            now = read_balance(snapshot, found)
    document = {
        "tenant": tenant,
        "added": write_decimal(money.picos),
        "available": write_decimal(now.available.picos),
        "currency": wanted,
        "transaction_id": transaction.id,
    }
    show(document, as_json=json, title="credit added")


def balance(tenant: TenantArgument, json: JsonFlag = False) -> None:
    """Show what a tenant can spend, and what is held for open requests."""
    with stores_opened() as stores:
        found = find_tenant(stores.access, tenant)
        with stores.reports.snapshot() as snapshot:
            stands = read_balance(snapshot, found)
    document = {
        "tenant": tenant,
        "available": write_decimal(stands.available.picos),
        "held": write_decimal(stands.held.picos),
        "total": write_decimal(stands.total.picos),
        "currency": stands.available.currency,
    }
    show(document, as_json=json)
