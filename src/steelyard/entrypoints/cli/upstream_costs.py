"""`steelyard cost`: what upstreams charge us, and what is left of what we earn with them."""

from typing import Annotated

import typer

from steelyard.billing.billing_period import read_month
from steelyard.billing.commands import Booked
from steelyard.billing.cost_to_serve import CostToServe, HourRates, cost_to_serve
from steelyard.billing.upstream_cost import margins, pay_upstream_bill, record_cost
from steelyard.entrypoints.cli.funds import TAKES_NEGATIVE, IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    print_json,
    show,
    show_rows,
    stores_opened,
)
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


@costs.command(
    "serve",
    epilog="Example: `steelyard cost serve --period 2026-11 --currency USD --gpu-hour 2.50`",
)
def serve(
    period: MonthOption,
    currency: Annotated[str, typer.Option(help="Of what is shown, as USD.")],
    gpu_hour: Annotated[str, typer.Option(help="What an hour of a GPU costs us.")] = "0",
    cpu_hour: Annotated[str, typer.Option(help="What an hour of one CPU costs us.")] = "0",
    requests: Annotated[
        int, typer.Option(min=0, max=10_000, help="How many requests, the worst to serve first.")
    ] = 0,
    json: JsonFlag = False,
) -> None:
    """Show the engine time that each model and request took in a month, its cost and its revenue."""
    rates = HourRates(gpu=read_decimal(gpu_hour), cpu=read_decimal(cpu_hour))
    with stores_opened() as stores, stores.upstreams.snapshot() as snapshot:
        found = cost_to_serve(
            snapshot.served(read_month(period, time_zone="UTC")),
            rates=rates,
            currency=read_currency(currency),
            requests_max=requests,
        )
    _show_served(found, with_requests=requests > 0, as_json=json)


def _show_served(found: CostToServe, *, with_requests: bool, as_json: bool) -> None:
    models = [
        {
            "model": row.model,
            "upstream": row.upstream,
            "requests": row.requests,
            "untimed": row.untimed,
            "gpu_us": row.gpu_us,
            "cpu_us": row.cpu_us,
            "revenue": write_decimal(row.revenue),
            "cost": write_decimal(row.cost),
            "margin": write_decimal(row.margin),
        }
        for row in found.models
    ]
    requests = [
        {
            "event_id": row.event.id,
            "model": row.event.model,
            "gpu_us": row.gpu_us,
            "cpu_us": row.cpu_us,
            "revenue": write_decimal(row.event.revenue),
            "cost": write_decimal(row.cost),
            "margin": write_decimal(row.margin),
        }
        for row in found.requests
    ]
    if as_json:
        print_json({"models": models, "requests": requests})
        return
    numbers = ["gpu_us", "cpu_us", "revenue", "cost", "margin"]
    columns = ["model", "upstream", "requests", "untimed", *numbers]
    empty = "no usage in this currency in this month"
    show_rows(models, columns, as_json=False, empty=empty, right=columns[2:])
    if with_requests:
        columns = ["event_id", "model", *numbers]
        show_rows(requests, columns, as_json=False, empty="no requests", right=numbers)


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
