"""`steelyard credit ... | balance`: money in and out, and where it stands."""

import getpass
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import typer

from steelyard.app.stores import Stores
from steelyard.billing.commands import Booked, new_command
from steelyard.billing.correction import correct_balance
from steelyard.billing.credit_line import set_credit_limit, take_payment, write_off_debt
from steelyard.billing.fund_books import FundBooks
from steelyard.billing.pay_out import pay_out_credit
from steelyard.billing.top_up import GrantTerms, add_credit, grant_credit
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    make_table,
    print_json,
    show,
    show_rows,
    stores_opened,
)
from steelyard.entrypoints.cli.places import Tenant, TenantArgument, find_tenant, read_moment
from steelyard.ledger.grant import Funds
from steelyard.ledger.transaction import Command
from steelyard.money import Money, read_currency, read_decimal, write_decimal
from steelyard.timestamp import write_timestamp

credit = typer.Typer(no_args_is_help=True, help="Credit: money that tenants pay in, owe or get.")

AmountArgument = Annotated[
    str, typer.Argument(help="A decimal number of the currency, as in 12.50.")
]
CurrencyOption = Annotated[
    str | None, typer.Option(help="Refuse unless the balance is in this currency.")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for whoever reads the books.")]
IdOption = Annotated[
    str | None,
    typer.Option("--id", help="Done once for each id, however often the command is repeated."),
]
ExpiresOption = Annotated[
    str | None, typer.Option(help="When what is left of it is lost, in RFC 3339.")
]
PriorityOption = Annotated[
    int | None, typer.Option(help="0 to 100; the lowest is spent first. Default: 50.")
]
# A negative amount looks like an option; it has to reach us to be refused with a good word.
TAKES_NEGATIVE: dict[str, Any] = {"ignore_unknown_options": True}


@dataclass(frozen=True, slots=True)
class _Order:
    """What was said on the command line, by every command that moves money."""

    tenant: str
    amount: str
    currency: str | None
    reason: str
    command_id: str | None


class _MoneyCommand(Protocol):
    def __call__(
        self, books: FundBooks, tenant: Tenant, /, *, amount: Money, command: Command
    ) -> Booked: ...


def register(application: typer.Typer) -> None:
    application.add_typer(credit, name="credit")
    application.command("balance", epilog="Example: `steelyard balance acme/research`")(balance)


def command_of(stores: Stores, reason: str, command_id: str | None = None) -> Command:
    """A command of whoever runs this program."""
    actor = getpass.getuser()
    return new_command(clock=stores.clock, actor=actor, reason=reason, command_id=command_id)


@credit.command(
    "add",
    context_settings=TAKES_NEGATIVE,
    epilog='Example: `steelyard credit add acme 250.00 --reason "invoice 17"`',
)
def add(
    tenant: TenantArgument,
    amount: AmountArgument,
    currency: CurrencyOption = None,
    reason: ReasonOption = "top-up",
    expires: ExpiresOption = None,
    priority: PriorityOption = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Top up a balance; the amount can be spent at once."""
    give = partial(add_credit, terms=GrantTerms(read_moment(expires), priority))
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, give, field="added", title="credit added", as_json=json)


@credit.command(
    "grant",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard credit grant acme 20 --expires 2027-01-01T00:00:00Z`",
)
def grant(
    tenant: TenantArgument,
    amount: AmountArgument,
    expires: ExpiresOption = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="It lasts for ever.")] = False,
    priority: PriorityOption = None,
    currency: CurrencyOption = None,
    reason: ReasonOption = "promotional credit",
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Give promotional credit away; it is spent before paid money that expires no sooner."""
    if (expires is None) != no_expiry:
        raise typer.BadParameter("say --expires MOMENT, or --no-expiry")
    give = partial(grant_credit, terms=GrantTerms(read_moment(expires), priority))
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, give, field="granted", title="credit granted", as_json=json)


@credit.command(
    "pay-out",
    context_settings=TAKES_NEGATIVE,
    epilog='Example: `steelyard credit pay-out acme 40 --reason "contract ended"`',
)
def pay_out(
    tenant: TenantArgument,
    amount: AmountArgument,
    reason: ReasonOption,
    currency: CurrencyOption = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Book that a tenant got unspent paid money back."""
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, pay_out_credit, field="paid_out", title="paid out", as_json=json)


@credit.command(
    "payment",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard credit payment acme 119 --id bank-4711`",
)
def payment(
    tenant: TenantArgument,
    amount: AmountArgument,
    currency: CurrencyOption = None,
    reason: ReasonOption = "payment",
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Book that a tenant has paid some of what it owed, invoices first."""
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, take_payment, field="paid", title="payment booked", as_json=json)


@credit.command(
    "write-off",
    context_settings=TAKES_NEGATIVE,
    epilog='Example: `steelyard credit write-off acme 12.50 --reason "insolvent"`',
)
def write_off(
    tenant: TenantArgument,
    amount: AmountArgument,
    reason: ReasonOption,
    currency: CurrencyOption = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Book that some of what a tenant owes will never be paid."""
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, write_off_debt, field="written_off", title="written off", as_json=json)


@credit.command(
    "correct",
    context_settings=TAKES_NEGATIVE,
    epilog='Example: `steelyard credit correct acme -- -3.20 --reason "wrong price"`',
)
def correct(
    tenant: TenantArgument,
    amount: Annotated[
        str, typer.Argument(help="In the tenant's favour, or with a minus sign against it.")
    ],
    reason: ReasonOption,
    currency: CurrencyOption = None,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Correct what a tenant was charged; it goes on the next invoice."""
    order = _Order(tenant, amount, currency, reason, command_id)
    _carry_out(order, correct_balance, field="corrected", title="corrected", as_json=json)


@credit.command(
    "limit", context_settings=TAKES_NEGATIVE, epilog="Example: `steelyard credit limit acme 500`"
)
def limit(
    tenant: TenantArgument,
    amount: Annotated[str, typer.Argument(help="How much it may owe; 0 ends the credit line.")],
    currency: CurrencyOption = None,
    reason: ReasonOption = "credit limit",
    json: JsonFlag = False,
) -> None:
    """Let a post-paid tenant owe up to so much."""
    with stores_opened() as stores:
        found = find_tenant(stores.access, tenant)
        money = _read_money(amount, found, currency)
        command = command_of(stores, reason)
        set_credit_limit(stores.books, found, limit=money, command=command)
        document = {"tenant": tenant, **_balance_document(stores, found)}
    show(document, as_json=json, title="credit limit set")


@credit.command("history", epilog="Example: `steelyard credit history acme --limit 20`")
def history(
    tenant: TenantArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many commands.")] = 50,
    json: JsonFlag = False,
) -> None:
    """List the commands that moved a balance, who gave them, and why; the newest first."""
    with stores_opened() as stores:
        found = find_tenant(stores.access, tenant)
        movements = stores.funds.history_of(found.payer_id, limit=limit)
    rows = [
        {
            "booked_at": write_timestamp(movement.booked_at),
            "template": movement.template,
            "amount": write_decimal(movement.picos),
            "currency": found.currency,
            "actor": movement.actor,
            "reason": movement.reason,
            "reference": movement.reference,
            "id": movement.id,
        }
        for movement in movements
    ]
    columns = ["booked_at", "template", "amount", "currency", "actor", "reason", "id"]
    show_rows(rows, columns, as_json=json, empty="nothing was booked yet", right=("amount",))


def balance(tenant: TenantArgument, json: JsonFlag = False) -> None:
    """Show what a tenant can spend, grant by grant, what is held, and what it owes."""
    with stores_opened() as stores:
        found = find_tenant(stores.access, tenant)
        document = {"tenant": tenant, **_balance_document(stores, found)}
        funds = stores.funds.funds_of(found.payer_id, currency=found.currency)
    if json:
        print_json({**document, "grants": _grants(funds)})
        return
    show(document, as_json=False)
    columns = ["kind", "left", "expires_at", "priority", "id"]
    if funds.grants:
        console.print(make_table(_grants(funds), columns, right=("left", "priority")))


def _carry_out(order: _Order, act: _MoneyCommand, *, field: str, title: str, as_json: bool) -> None:
    with stores_opened() as stores:
        tenant = find_tenant(stores.access, order.tenant)
        money = _read_money(order.amount, tenant, order.currency)
        command = command_of(stores, order.reason, order.command_id)
        booked = act(stores.books, tenant, amount=money, command=command)
        document = {
            "tenant": tenant.path,
            field: write_decimal(money.picos),
            **_balance_document(stores, tenant),
            "transaction_id": booked.transaction.id,
            "is_repeat": booked.is_repeat,
        }
    show(document, as_json=as_json, title=f"{title} before" if booked.is_repeat else title)


def _balance_document(stores: Stores, tenant: Tenant) -> dict[str, Any]:
    funds = stores.funds.funds_of(tenant.payer_id, currency=tenant.currency)
    available = funds.available(at=stores.clock.now())
    return {
        "available": write_decimal(available),
        "held": write_decimal(funds.held),
        "total": write_decimal(available + funds.held),
        "owed": write_decimal(funds.owed + funds.invoiced),
        "credit_limit": write_decimal(funds.credit_limit),
        "currency": tenant.currency,
    }


def _grants(funds: Funds) -> list[dict[str, Any]]:
    return [
        {
            "id": balance.grant.id,
            "kind": balance.grant.kind,
            "left": write_decimal(balance.picos),
            "priority": balance.grant.priority,
            "granted_at": write_timestamp(balance.grant.granted_at),
            "expires_at": write_timestamp(balance.grant.expires_at)
            if balance.grant.expires_at
            else None,
        }
        for balance in funds.grants
    ]


def _read_money(amount: str, tenant: Tenant, currency: str | None) -> Money:
    wanted = read_currency(currency) if currency else tenant.currency
    return Money(read_decimal(amount), wanted)
