"""`steelyard re-rate`: usage of the past at other prices, proposed, looked at and approved."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.app.stores import Stores
from steelyard.billing.adjustments import Adjusted
from steelyard.billing.re_rating import (
    DifferenceRow,
    ReRatingNotFound,
    ReRatingRun,
    ReRatingScope,
    approve_re_rating,
    propose_re_rating,
    read_run,
)
from steelyard.entrypoints.cli.funds import ReasonOption, command_of
from steelyard.entrypoints.cli.output import JsonFlag, console, show, show_rows, stores_opened
from steelyard.entrypoints.cli.prices import find_version
from steelyard.money import write_decimal
from steelyard.timestamp import read_timestamp, write_timestamp

re_ratings = typer.Typer(
    no_args_is_help=True, help="Re-rating: usage of the past at other prices, never an edit."
)
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


def register(application: typer.Typer) -> None:
    application.add_typer(re_ratings, name="re-rate")


@re_ratings.command(
    "propose",
    epilog=(
        "Example: `steelyard re-rate propose acme --to list-2026-11b --from 2026-11-16T00:00:00Z "
        '--until 2026-11-23T00:00:00Z --reason "wrong list price"`'
    ),
)
def propose(
    organisation: Annotated[str, typer.Argument(help="Whose usage.")],
    reason: ReasonOption,
    to: Annotated[str, typer.Option("--to", help="The price book that counts: name or hash.")],
    start: Annotated[str, typer.Option("--from", help="Usage from this moment on, RFC 3339.")],
    until: Annotated[str, typer.Option("--until", help="Up to, but without, this moment.")],
    old: Annotated[
        str | None, typer.Option("--priced-by", help="Only usage priced by this book.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    json: JsonFlag = False,
) -> None:
    """Price usage again and show the difference. Nothing is booked until somebody approves it."""
    with stores_opened() as stores:
        versions = stores.prices.versions()
        scope = ReRatingScope(
            organisation_id=stores.access.find_organisation(organisation).id,
            start=_read_moment(start),
            end=_read_moment(until),
            old_version=find_version(old, versions).sha256 if old else None,
            model=model,
        )
        run, rows = propose_re_rating(
            stores.books,
            scope,
            new_version=find_version(to, versions).sha256,
            documents=stores.audit.price_documents(),
            command=command_of(stores, reason),
        )
        document = _run(stores, run, rows)
    _show(document, as_json=json, title="re-rating proposed, nothing is booked yet")
    if not json:
        console.print(Text(f"  book it: steelyard re-rate approve {run.id} --reason ...", "dim"))


@re_ratings.command(
    "approve",
    epilog=(
        "Example: `steelyard re-rate approve 01a20be2-6f1b-774b-814c-cac873a757d4 "
        '--reason "agreed with acme"`'
    ),
)
def approve(run_id: RunArgument, reason: ReasonOption, json: JsonFlag = False) -> None:
    """Book the adjusting entries of a run. Refused if anything has changed since it was proposed."""
    with stores_opened() as stores:
        adjusted = approve_re_rating(
            stores.books,
            run_id,
            documents=stores.audit.price_documents(),
            command=command_of(stores, reason),
        )
        departments = {d.id: d.path for d in stores.access.departments()}
    rows = [_adjusted(entry, departments) for entry in adjusted]
    columns = ["department", "amount", "currency", "billed_at"]
    show_rows(rows, columns, as_json=json, empty="nothing to adjust", right=("amount",))


@re_ratings.command("list", epilog="Example: `steelyard re-rate list`")
def list_runs(json: JsonFlag = False) -> None:
    """List the runs, proposed and approved."""
    with stores_opened() as stores, stores.books.write() as unit:
        runs = unit.runs()
    rows = [_summary(run) for run in runs]
    columns = ["run", "proposed_at", "proposed_by", "difference", "approved_at", "approved_by"]
    show_rows(rows, columns, as_json=json, empty="no re-rating yet", right=("difference",))


@re_ratings.command(
    "show", epilog="Example: `steelyard re-rate show 01a20be2-6f1b-774b-814c-cac873a757d4`"
)
def show_run(run_id: RunArgument, json: JsonFlag = False) -> None:
    """Show what a run changes, by department and model."""
    with stores_opened() as stores:
        with stores.books.write() as unit:
            run = unit.find_run(run_id)
        if run is None:
            raise ReRatingNotFound(f"there is no run {run_id!r}")
        document = _run(stores, run, read_run(run).rows)
    _show(document, as_json=json, title=None)


def _run(stores: Stores, run: ReRatingRun, rows: Sequence[DifferenceRow]) -> dict[str, Any]:
    departments = {d.id: d.path for d in stores.access.departments()}
    return {
        **_summary(run),
        "rows": [
            {
                "department": departments.get(row.department_id, row.department_id),
                "model": row.model,
                "events": row.events,
                "before": write_decimal(row.before),
                "after": write_decimal(row.after),
                "difference": write_decimal(row.after - row.before),
            }
            for row in rows
        ],
    }


def _summary(run: ReRatingRun) -> dict[str, Any]:
    proposed = read_run(run)
    return {
        "run": run.id,
        "from": write_timestamp(proposed.scope.start),
        "until": write_timestamp(proposed.scope.end),
        "new_price_version": proposed.new_version,
        "reason": proposed.reason,
        "difference": write_decimal(sum(row.after - row.before for row in proposed.rows)),
        "proposed_at": write_timestamp(run.proposed_at),
        "proposed_by": run.proposed_by,
        "approved_at": write_timestamp(run.approved_at) if run.approved_at else None,
        "approved_by": run.approved_by,
    }


def _show(document: dict[str, Any], *, as_json: bool, title: str | None) -> None:
    if as_json:
        show(document, as_json=True)
        return
    show({k: v for k, v in document.items() if k != "rows"}, as_json=False, title=title)
    columns = ["department", "model", "events", "before", "after", "difference"]
    right = ("events", "before", "after", "difference")
    show_rows(document["rows"], columns, as_json=False, empty="no difference", right=right)


def _adjusted(entry: Adjusted, departments: dict[str, str]) -> dict[str, Any]:
    return {
        "department": departments.get(entry.department_id, entry.department_id),
        "amount": write_decimal(entry.amount.picos),
        "currency": entry.amount.currency,
        "billed_at": write_timestamp(entry.billed_at),
        "run": entry.reference,
    }


def _read_moment(text: str) -> datetime:
    try:
        return read_timestamp(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it as 2026-11-01T00:00:00Z") from error
