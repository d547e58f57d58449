"""`steelyard usage | statement | verify`: what was used, what it cost, and whether it is right."""

from collections.abc import Collection
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from steelyard.billing.flight_checks import check_ended_leases, check_flight
from steelyard.billing.statement import Movements, Period, Statement, make_statement
from steelyard.billing.verification import Check, verify_books
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    error_console,
    make_table,
    print_json,
    show_rows,
    stores_opened,
)
from steelyard.entrypoints.cli.places import TenantArgument, find_tenant
from steelyard.eventlog.outbox_survey import attempts_among, outbox_of
from steelyard.metering.usage_event import decode_event
from steelyard.money import write_decimal
from steelyard.settings import read_settings
from steelyard.storage.reports import RecentEvent
from steelyard.timestamp import read_timestamp, write_timestamp

EXIT_DIFFERENCES = 2
# Some kinds of transaction under the names that a statement has for them.
COMMAND_NAMES = {
    "top_up": "top_ups",
    "refund_usage": "refunds",
    "charge_usage": "corrections",
    "credit_note": "credit_notes",
}


def register(application: typer.Typer) -> None:
    application.command("usage", epilog="Example: `steelyard usage --tenant acme/research`")(usage)
    application.command(
        "statement", epilog="Example: `steelyard statement acme --from 2026-11-01T00:00:00Z`"
    )(statement)
    application.command("verify", epilog="Example: `steelyard verify --json`")(verify)


def usage(
    tenant: Annotated[
        str | None, typer.Option(help="Only of this organisation/department.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="Only the event of this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many events.")] = 20,
    json: JsonFlag = False,
) -> None:
    """List the newest usage events with their counts, prices and amounts."""
    with stores_opened() as stores:
        department_id = stores.access.find_department(tenant).id if tenant else None
        departments = {d.id: d.path for d in stores.access.departments()}
        with stores.reports.snapshot() as snapshot:
            events = snapshot.recent_events(
                department_id=department_id, event_id=event, limit=limit
            )
    rows = [_event(event, departments) for event in events]
    columns = [
        "ended_at",
        "department",
        "model",
        "input",
        "output",
        "amount",
        "currency",
        "end_cause",
        "id",
    ]
    show_rows(
        rows, columns, as_json=json, empty="no usage yet", right=("input", "output", "amount")
    )


def statement(
    tenant: TenantArgument,
    start: Annotated[
        str | None, typer.Option("--from", help="RFC 3339; default: the first of this month, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: now.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what a tenant used in a period, at what price, and what moved its balance."""
    with stores_opened() as stores:
        period = read_period(start, end, now=stores.clock.now())
        found = find_tenant(stores.access, tenant)
        with stores.reports.snapshot() as snapshot:
            made = make_statement(snapshot, found, period=period)
    if json:
        print_json(_statement(made))
    else:
        _print_statement(made)


def verify(json: JsonFlag = False) -> None:
    """Replay the log from its start and check every invariant; safe on a live system.

    Exit status 0 says that everything agrees, 2 that something does not.
    """
    with stores_opened() as stores, stores.audit.snapshot() as snapshot, _progress() as bar:
        task = bar.add_task("replaying the log", total=snapshot.record_count())
        checks = verify_books(snapshot, progress=lambda count: bar.advance(task, count))
    with stores_opened() as stores:
        find = partial(_find_attempts, read_settings().outbox_dir)
        checks.append(check_ended_leases(stores.books))
        checks.append(check_flight(stores.books, find, at=stores.clock.now()))
    if json:
        print_json({"holds": all(c.holds for c in checks), "checks": [_check(c) for c in checks]})
    else:
        _print_checks(checks)
    if not all(check.holds for check in checks):
        raise typer.Exit(EXIT_DIFFERENCES)


def _find_attempts(folder: Path, source: str, attempt_ids: Collection[str]) -> set[str] | None:
    path = outbox_of(folder, source)
    return attempts_among(path, attempt_ids) if path else None


def _progress() -> Progress:
    """On standard error, and only where somebody looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*columns, TimeRemainingColumn())
    return Progress(
        *columns, console=error_console, transient=True, disable=not error_console.is_terminal
    )


def read_period(start: str | None, end: str | None, *, now: datetime) -> Period:
    """A period as options name it: by default this month so far."""
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    try:
        begins = read_timestamp(start) if start else first
        ends = read_timestamp(end) if end else now
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it as 2026-11-01T00:00:00Z") from error
    if begins > ends:
        raise typer.BadParameter("the period ends before it begins")
    return Period(begins, ends)


def _event(recent: RecentEvent, departments: dict[str, str]) -> dict[str, Any]:
    event = decode_event(recent.body)
    record = event.data
    meters = record.meters
    return {
        "id": event.id,
        "ended_at": record.ended_at,
        "department": departments.get(record.department_id, record.department_id),
        "model": record.model_served,
        "input": _count(meters, "input."),
        "output": _count(meters, "output."),
        "meters": meters,
        "amount": record.amount,
        "currency": record.currency,
        "held": record.held,
        "price_version": record.price_version,
        "count_source": record.count_source,
        "end_cause": record.end_cause,
        "endpoint": record.endpoint,
        "request_id": record.request_id,
        "outcome": recent.outcome,
    }


def _count(meters: dict[str, str], family: str) -> int:
    return sum(int(count) for meter, count in meters.items() if meter.startswith(family))


def _statement(made: Statement) -> dict[str, Any]:
    return {
        "tenant": made.tenant,
        "from": write_timestamp(made.period.start),
        "to": write_timestamp(made.period.end),
        "currency": made.currency,
        "requests": made.requests,
        "lines": [
            {
                "department": line.department,
                "project": line.project,
                "key": line.key,
                "model": line.model,
                "meter": line.meter,
                "count": str(line.count),
                "price": write_decimal(line.picos_per_unit),
                "amount": write_decimal(line.picos),
            }
            for line in made.lines
        ],
        "total": write_decimal(made.total.picos),
        "balance": _movements(made.movements) if made.movements else None,
    }


def _movements(movements: Movements) -> dict[str, str]:
    return {
        "opening": write_decimal(movements.opening.picos),
        "top_ups": "0",
        **{
            COMMAND_NAMES.get(kind, kind): write_decimal(money.picos)
            for kind, money in movements.commands.items()
        },
        "charges": write_decimal(movements.charges.picos),
        "suspended": write_decimal(movements.suspended.picos),
        "closing": write_decimal(movements.closing.picos),
    }


def _print_statement(made: Statement) -> None:
    document = _statement(made)
    console.print(Text(f"Statement of {made.tenant}", style="bold green"))
    console.print(
        Text(f"  {document['from']} to {document['to']}, {made.requests} requests", "dim")
    )
    columns = ["department", "project", "key", "model", "meter", "count", "price", "amount"]
    if not any(line.project for line in made.lines):
        columns.remove("project")
    if made.lines:
        console.print(make_table(document["lines"], columns, right=("count", "price", "amount")))
    balance = _movements(made.movements) if made.movements else {}
    width = max(len(name) for name in ("total", *balance))
    console.print(Text(f"  {'total':<{width}}  {document['total']} {made.currency}", style="bold"))
    for name, amount in balance.items():
        written = f"  {name.replace('_', '-'):<{width}}  {amount} {made.currency}"
        console.print(Text(written, style="dim"))


def _check(check: Check) -> dict[str, Any]:
    return {
        "invariant": check.invariant,
        "claim": check.claim,
        "compared": check.compared,
        "difference_count": check.difference_count,
        "differences": check.differences,
    }


def _print_checks(checks: list[Check]) -> None:
    for check in checks:
        verdict = ("holds  ", "bold green") if check.holds else ("BROKEN ", "bold red")
        compared = (f"  ({check.compared} compared)", "dim")
        console.print(
            Text.assemble(verdict, (f"{check.invariant}  ", "dim"), check.claim, compared)
        )
        for difference in check.differences:
            console.print(Text(f"          {difference}", style="red"))
        hidden = check.difference_count - len(check.differences)
        if hidden:
            console.print(Text(f"          and {hidden} more", style="red"))
    broken = sum(not check.holds for check in checks)
    summary = (
        f"{broken} of {len(checks)} checks found differences" if broken else "the books are right"
    )
    console.print(Text(summary, style="bold red" if broken else "bold green"))
