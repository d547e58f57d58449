"""`steelyard report suggestions`: what suggestions in editors cost, and how many were accepted."""

from typing import Annotated, Any

import typer

from steelyard.entrypoints.cli.output import JsonFlag, show_rows, stores_opened
from steelyard.entrypoints.cli.reports import read_period
from steelyard.money import write_decimal
from steelyard.storage.suggestion_store import SuggestionSums

made = typer.Typer(no_args_is_help=True, help="Reports.")


def register(application: typer.Typer) -> None:
    application.add_typer(made, name="report")


@made.command("suggestions", epilog="Example: `steelyard report suggestions acme`")
def suggestions(
    organisation: Annotated[str, typer.Argument(help="Whose suggestions.")],
    start: Annotated[
        str | None, typer.Option("--from", help="RFC 3339; default: the first of this month, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: now.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show by department and model how many suggestions were made, shown and accepted, what they
    cost, and what that is for each accepted one."""
    with stores_opened() as stores:
        period = read_period(start, end, now=stores.clock.now())
        found = stores.suggestions.sums(
            stores.access.find_organisation(organisation), start=period.start, end=period.end
        )
    columns = ["department", "model", "suggestions", "shown", "accepted"]
    columns += ["cost", "cost_per_accepted", "currency"]
    show_rows(
        [_row(sums) for sums in found],
        columns,
        as_json=json,
        empty="no editor has told of a suggestion yet",
        right=columns[2:-1],
    )


def _row(sums: SuggestionSums) -> dict[str, Any]:
    return {
        "department": sums.department,
        "model": sums.model,
        "suggestions": sums.suggestions,
        "shown": sums.shown,
        "accepted": sums.accepted,
        "cost": write_decimal(sums.picos),
        # Cut off below a pico: a figure to compare models by, which nobody is charged.
        "cost_per_accepted": write_decimal(sums.picos // sums.accepted) if sums.accepted else None,
        "currency": sums.currency,
    }
