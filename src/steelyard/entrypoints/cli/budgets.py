"""`steelyard budget`: how much may be used per day, per month or in total, and how much is."""

from typing import Annotated, Any, Final

import typer

from steelyard.access.budget import Budget, BudgetMalformed, BudgetPeriod, set_budget
from steelyard.entrypoints.cli.funds import TAKES_NEGATIVE
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.entrypoints.cli.places import (
    PlaceArgument,
    find_place,
    organisation_of,
    paths_by_id,
    scope_of,
)
from steelyard.money import read_decimal, write_decimal
from steelyard.storage.budget_store import BudgetStanding
from steelyard.timestamp import write_timestamp

budgets = typer.Typer(no_args_is_help=True, help="Budgets: how much may be used.")

_PERIODS: Final[dict[str, BudgetPeriod]] = {"day": "day", "month": "month", "total": "total"}


def register(application: typer.Typer) -> None:
    application.add_typer(budgets, name="budget")


@budgets.command(
    "set",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard budget set acme/research --amount 50 --per month`",
)
def set_one(
    place: PlaceArgument,
    amount: Annotated[str | None, typer.Option(help="In the currency, as in 50.00.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens instead of money.")] = None,
    per: Annotated[str, typer.Option(help="day, month or total.")] = "month",
    soft: Annotated[bool, typer.Option("--soft", help="Count and alert, never refuse.")] = False,
    key: Annotated[bool, typer.Option("--key", help="The place is a key.")] = False,
    json: JsonFlag = False,
) -> None:
    """Set a budget; it counts from now on, and refuses what would pass it."""
    if (amount is None) == (tokens is None):
        raise BudgetMalformed("a budget is of money (--amount) or of tokens (--tokens)")
    with stores_opened() as stores:
        found = find_place(stores.access, place, is_key=key)
        budget = set_budget(
            organisation_of(found),
            scope=scope_of(found),
            scope_id=found.id,
            unit="tokens" if amount is None else "money",
            amount=_read_tokens(tokens or "") if amount is None else read_decimal(amount),
            period=_read_period(per),
            is_hard=not soft,
            at=stores.clock.now(),
        )
        stores.budgets.insert_budget(budget)
    show(_budget(budget, place), as_json=json, title="budget set")


@budgets.command("list", epilog="Example: `steelyard budget list`")
def list_budgets(json: JsonFlag = False) -> None:
    """List the budgets, with what is used, reserved and left of the window of now."""
    with stores_opened() as stores:
        now = stores.clock.now()
        paths = paths_by_id(stores.access)
        rows = [
            {
                **_budget(standing.budget, paths.get(standing.budget.scope_id, "")),
                **_standing(standing),
                "renews_at": write_timestamp(renews_at) if renews_at else None,
            }
            for standing in stores.budgets.standings(at=now)
            for renews_at in [standing.budget.renews_at(at=now)]
        ]
    columns = ["place", "per", "kind", "limit", "used", "reserved", "left", "unit", "window"]
    show_rows(
        rows,
        [*columns, "alerts", "id"],
        as_json=json,
        empty="no budget yet: steelyard budget set ORG --amount 50",
        right=("limit", "used", "reserved", "left"),
    )


@budgets.command(
    "end", epilog="Example: `steelyard budget end 01a20be2-386e-70a4-85a5-df60edd73784`"
)
def end(
    budget_id: Annotated[str, typer.Argument(metavar="BUDGET", help="The budget's id.")],
    json: JsonFlag = False,
) -> None:
    """End a budget; from now on it refuses and counts nothing new."""
    with stores_opened() as stores:
        budget = stores.budgets.end_budget(budget_id, at=stores.clock.now())
        place = paths_by_id(stores.access).get(budget.scope_id, "")
    show(_budget(budget, place), as_json=json, title="budget ended")


def _read_period(text: str) -> BudgetPeriod:
    if text not in _PERIODS:
        raise BudgetMalformed(f"a budget is per day, month or total, not {text!r}")
    return _PERIODS[text]


def _read_tokens(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise BudgetMalformed(f"{text!r} is not a number of tokens")
    return int(text)


def _budget(budget: Budget, place: str) -> dict[str, Any]:
    return {
        "id": budget.id,
        "place": place,
        "scope": budget.scope,
        "per": budget.period,
        "kind": "hard" if budget.is_hard else "soft",
        "limit": _write(budget, budget.amount),
        "unit": budget.currency if budget.unit == "money" else "tokens",
        "created_at": write_timestamp(budget.created_at),
        "ended_at": write_timestamp(budget.ended_at) if budget.ended_at else None,
    }


def _standing(standing: BudgetStanding) -> dict[str, Any]:
    budget, stands = standing.budget, standing.stands
    left = budget.amount - stands.used - stands.reserved
    return {
        "used": _write(budget, stands.used),
        "reserved": _write(budget, stands.reserved),
        "left": _write(budget, left),
        "window": standing.window,
        "alerts": ", ".join(f"{percent} %" for percent in standing.alerts),
    }


def _write(budget: Budget, amount: int) -> str:
    return write_decimal(amount) if budget.unit == "money" else str(amount)
