"""`steelyard chargeback`: split what shared departments cost among those who bear it."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import read_period
from steelyard.billing.chargeback_posting import post_chargeback, show_chargeback
from steelyard.billing.chargeback_report import (
    Chargeback,
    DepartmentLine,
    chargeback_document,
    negated,
    write_chargeback_csv,
)
from steelyard.billing.chargeback_weights import read_weights, set_weights
from steelyard.billing.statement import Period
from steelyard.entrypoints.cli.funds import IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    make_table,
    print_json,
    show,
    show_rows,
    stores_opened,
)

chargebacks = typer.Typer(
    no_args_is_help=True, help="Chargeback: who bears what shared departments cost."
)


class ReportFormat(StrEnum):
    table = "table"
    csv = "csv"


OrganisationArgument = Annotated[str, typer.Argument(help="The organisation.")]
PeriodOption = Annotated[
    str | None, typer.Option(help="A month of the organisation's time zone, as 2026-10.")
]
FromOption = Annotated[str | None, typer.Option("--from", help="RFC 3339, instead of a month.")]
ToOption = Annotated[str | None, typer.Option("--to", help="RFC 3339, instead of a month.")]


def register(application: typer.Typer) -> None:
    application.add_typer(chargebacks, name="chargeback")


@chargebacks.command(
    "set",
    epilog="Example: `steelyard chargeback set acme/platform --weight research=3 --weight sales=1`",
)
def set_shared(
    department: Annotated[str, typer.Argument(help="The shared one: organisation/department.")],
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="DEPARTMENT=WEIGHT", help="Who bears how many parts; repeat it."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="It is not shared any more.")] = False,
    json: JsonFlag = False,
) -> None:
    """Say who bears a shared department; this replaces all that was said before."""
    if none and weight:
        raise typer.BadParameter("say --weight, or --none")
    with stores_opened() as stores:
        shared = stores.access.find_department(department)
        said = {} if none else read_weights(weight or [])
        path = shared.organisation.path
        bearers = [(stores.access.find_department(f"{path}/{name}"), said[name]) for name in said]
        set_weights(stores.books, shared, bearers)
    title = "borne by" if said else "not shared any more"
    document = {"department": department, "weights": said} if json else said
    show(document, as_json=json, title=f"{department}: {title}")


@chargebacks.command("list", epilog="Example: `steelyard chargeback list acme`")
def list_shared(
    organisation: Annotated[str | None, typer.Argument(help="Only of this one.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the shared departments, with who bears them by what weight."""
    rows: list[dict[str, Any]] = []
    with stores_opened() as stores:
        found = stores.access.organisations()
        if organisation is not None:
            found = [stores.access.find_organisation(organisation)]
        with stores.chargebacks.snapshot() as snapshot:
            for owner in found:
                for shared, weights in snapshot.weights_of(owner.id).items():
                    rows += [
                        {
                            "shared": f"{owner.path}/{shared}",
                            "department": name,
                            "weight": weight,
                            "of_weights": sum(weights.values()),
                        }
                        for name, weight in weights.items()
                    ]
    columns = ["shared", "department", "weight", "of_weights"]
    empty = "no department is shared"
    show_rows(rows, columns, as_json=json, empty=empty, right=columns[2:])


@chargebacks.command(
    "report", epilog="Example: `steelyard chargeback report acme --period 2026-10`"
)
def report(
    organisation: OrganisationArgument,
    period: PeriodOption = None,
    start: FromOption = None,
    end: ToOption = None,
    file_format: Annotated[ReportFormat, typer.Option("--format", help="table or csv.")] = (
        ReportFormat.table
    ),
    json: JsonFlag = False,
) -> None:
    """Show what each department cost in a period, and what it bears of shared ones."""
    with stores_opened() as stores:
        found = stores.access.find_organisation(organisation)
        span = _read_period(found, period, start, end)
        with stores.chargebacks.snapshot() as snapshot:
            shown = show_chargeback(snapshot, found, period=span)
    if json:
        print_json({**chargeback_document(shown.chargeback), "posted_by": shown.posted_by})
    elif file_format is ReportFormat.csv:
        typer.echo(write_chargeback_csv(shown.chargeback), nl=False)
    else:
        _show(shown.chargeback, posted_by=shown.posted_by)


@chargebacks.command("post", epilog="Example: `steelyard chargeback post acme --period 2026-10`")
def post(
    organisation: OrganisationArgument,
    period: PeriodOption = None,
    start: FromOption = None,
    end: ToOption = None,
    reason: ReasonOption = "chargeback",
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Book the shares of a closed period between the balances of those who pay, once."""
    with stores_opened() as stores:
        found = stores.access.find_organisation(organisation)
        span = _read_period(found, period, start, end)
        command = command_of(stores, reason, command_id)
        posted = post_chargeback(stores.books, found, period=span, command=command)
    if json:
        document = chargeback_document(posted.chargeback)
        print_json({**document, "transaction_id": posted.id, "is_repeat": posted.is_repeat})
        return
    console.print(Text("booked before" if posted.is_repeat else "booked", style="bold green"))
    _show(posted.chargeback, posted_by=posted.id)


def _read_period(
    organisation: Organisation, month: str | None, start: str | None, end: str | None
) -> Period:
    return read_period(month=month, start=start, end=end, time_zone=organisation.time_zone)


def _show(chargeback: Chargeback, *, posted_by: str | None) -> None:
    rows = [row for line in chargeback.departments for row in _rows(line)]
    if rows:
        console.print(make_table(rows, ["department", "line", "amount"], right=("amount",)))
    console.print(Text(f"  total  {chargeback.total} {chargeback.currency}", style="bold"))
    moves = "moved" if posted_by else "posting would move"
    for line in chargeback.balances:
        console.print(Text(f"  {moves}  {line.amount} {chargeback.currency}  {line.payer}"))
    if posted_by:
        console.print(Text(f"  booked by the command {posted_by}", style="dim"))


def _rows(line: DepartmentLine) -> Iterator[dict[str, str]]:
    """What a department cost by itself, its shares of others, what others bear, and the sum."""
    yield {
        "department": line.department or "(whole organisation)",
        "line": "own",
        "amount": line.own,
    }
    for part in line.splits:
        yield {"line": f"split of {part.paid_by}", "amount": part.amount}
    if line.split_off != "0":
        yield {"line": "split off", "amount": negated(line.split_off)}
    for share in line.shares:
        part = f"{share.weight}/{share.of_weights} of {share.shared}"
        yield {"line": part, "amount": share.amount}
    if line.passed_on != "0":
        yield {"line": "passed on", "amount": negated(line.passed_on)}
    if line.splits or line.shares or {line.split_off, line.passed_on} != {"0"}:
        yield {"line": "total", "amount": line.total}
