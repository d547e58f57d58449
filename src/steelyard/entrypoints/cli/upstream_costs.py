"""`steelyard cost`: what upstreams charge us, and what is left of what we earn with them."""

from typing import Annotated

import typer

from steelyard.billing.commands import Booked
from steelyard.billing.upstream_cost import margins, pay_upstream_bill, record_cost
from steelyard.entrypoints.cli.funds import TAKES_NEGATIVE, IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.money import Money, read_currency, read_decimal, write_decimal

costs = typer.Typer(no_args_is_help=True, help="Costs: what upstreams charge us.")

UpstreamArgument = Annotated[str, typer.Argument(help="Its name, as usage events have it.")]
CurrencyOption = Annotated[str, typer.Option(help="Of the upstream's bill, as USD.")]
MonthOption = Annotated[str, typer.Option("--period", help="A month of UTC, as 2026-10.")]


def register(application: typer.Typer) -> None:
    application.add_typer(costs, name="cost")


@costs.command(
    "record",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard cost record openai 81.20 --currency USD --period 2026-10`",
)
def record(
    upstream: UpstreamArgument,
    amount: Annotated[
        str, typer.Argument(help="What it charges, or takes back with a minus sign.")
    ],
    currency: CurrencyOption,
    period: MonthOption,
    reason: ReasonOption = "upstream's bill",
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Record what an upstream charges us for a month; we owe it from then on."""
    with stores_opened() as stores:
        money = Money(read_decimal(amount), read_currency(currency))
        command = command_of(stores, reason, command_id)
        booked = record_cost(stores.books, upstream, amount=money, month=period, command=command)
    _show(booked, upstream, {"recorded": write_decimal(money.picos), "period": period}, json)


@costs.command(
    "pay",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard cost pay openai 81.20 --currency USD --id bank-812`",
)
def pay(
    upstream: UpstreamArgument,
    amount: Annotated[str, typer.Argument(help="What we have paid.")],
    currency: CurrencyOption,
    reason: ReasonOption = "upstream paid",
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Book that we have paid an upstream, at most what we owe it."""
    with stores_opened() as stores:
        money = Money(read_decimal(amount), read_currency(currency))
        command = command_of(stores, reason, command_id)
        booked = pay_upstream_bill(stores.books, upstream, amount=money, command=command)
    _show(booked, upstream, {"paid": write_decimal(money.picos)}, json)


@costs.command("report", epilog="Example: `steelyard cost report --period 2026-10`")
def report(period: MonthOption, json: JsonFlag = False) -> None:
    """Show what each upstream earned and cost in a month, and what we owe it now."""
    with stores_opened() as stores, stores.upstreams.snapshot() as snapshot:
        found = margins(snapshot, month=period)
    rows = [
        {
            "upstream": margin.upstream,
            "currency": margin.currency,
            "revenue": write_decimal(margin.revenue),
            "cost": write_decimal(margin.cost),
            "margin": write_decimal(margin.picos),
            "payable": write_decimal(margin.payable),
        }
        for margin in found
    ]
    columns = ["upstream", "currency", "revenue", "cost", "margin", "payable"]
    empty = "no usage and no cost in this month"
    show_rows(rows, columns, as_json=json, empty=empty, right=columns[2:])


def _show(booked: Booked, upstream: str, said: dict[str, str], as_json: bool) -> None:
    posting = booked.transaction.postings[0]
    document = {
        "upstream": upstream,
        **said,
        "currency": posting.account.currency,
        "transaction_id": booked.transaction.id,
        "is_repeat": booked.is_repeat,
    }
    show(document, as_json=as_json, title="booked before" if booked.is_repeat else "booked")
