"""`steelyard audit report`: what upstreams reported, beside what their own tokenizers say."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    make_table,
    print_json,
    stores_opened,
)
from steelyard.entrypoints.recount_collector import exceeds
from steelyard.settings import read_settings
from steelyard.storage.recount_store import SideSums, SqlRecountStore, UpstreamDrift, WidestRecount
from steelyard.timestamp import read_timestamp, write_timestamp

EXIT_DIFFERENCES = 2
PPM_OF_PERCENT = 10_000
audits = typer.Typer(no_args_is_help=True, help="The upstream audit: a second count.")


def register(application: typer.Typer) -> None:
    application.add_typer(audits, name="audit")


@audits.command("report", epilog="Example: `steelyard audit report --from 2026-11-01T00:00:00Z`")
def report(
    start: Annotated[
        str | None, typer.Option("--from", help="RFC 3339; default: the first of this month, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: now.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Only this upstream.")] = None,
    limit: Annotated[
        int, typer.Option(min=0, max=1_000, help="How many of the widest differences.")
    ] = 5,
    json: JsonFlag = False,
) -> None:
    """Compare what each upstream reported with what the models' own tokenizers say.

    Exit status 0 says that none drifts further than `STEELYARD_AUDIT_DRIFT_PERCENT_MAX`, 2 that
    one does.
    """
    drift_ppm_max = read_settings().audit_drift_ppm_max
    with stores_opened() as stores:
        begins, ends = _period(start, end, now=stores.clock.now())
        store = SqlRecountStore(stores.database)
        drifts = store.drifts(start=begins, end=ends)
        widest = store.widest(start=begins, end=ends, limit=limit)
    drifts = [drift for drift in drifts if upstream in (None, drift.upstream)]
    widest = [recount for recount in widest if upstream in (None, recount.upstream)]
    rows = [row for drift in drifts for row in _rows(drift, drift_ppm_max=drift_ppm_max)]
    if json:
        print_json(
            {
                "from": write_timestamp(begins),
                "to": write_timestamp(ends),
                "threshold_percent": _percent(drift_ppm_max),
                "upstreams": rows,
                "widest": [_widest(recount) for recount in widest],
            }
        )
    else:
        _print(rows, widest)
    if any(row["exceeds"] for row in rows):
        raise typer.Exit(EXIT_DIFFERENCES)


def _rows(drift: UpstreamDrift, *, drift_ppm_max: int) -> list[dict[str, Any]]:
    sides: list[tuple[str, SideSums]] = [("input", drift.input), ("output", drift.output)]
    return [
        {
            "upstream": drift.upstream,
            "model": drift.model,
            "side": side,
            "events": sums.events,
            "reported": sums.reported,
            "recounted": sums.recounted,
            "drift_percent": _percent(sums.drift_ppm),
            "threshold_percent": _percent(drift_ppm_max),
            "exceeds": exceeds(sums, drift_ppm_max=drift_ppm_max),
            "estimates": drift.estimates,
            "uncountable": drift.uncountable,
            "dropped": drift.dropped,
        }
        for side, sums in sides
    ]


def _print(rows: list[dict[str, Any]], widest: list[WidestRecount]) -> None:
    if not rows:
        console.print(Text("nothing was recounted yet: steelyard tokenizer add MODEL …", "dim"))
        return
    columns = ["upstream", "model", "side", "events", "reported", "recounted", "drift_percent"]
    columns += ["uncountable", "dropped"]
    console.print(make_table(rows, columns, right=columns[3:]))
    for row in rows:
        if row["exceeds"]:
            text = f"{row['model']} of {row['upstream']} drifts by {row['drift_percent']} % on {row['side']}"
            console.print(Text(text, style="bold red"))
    for recount in widest:
        console.print(Text(_sentence(recount), style="dim"))


def _sentence(recount: WidestRecount) -> str:
    sides = [
        f"{side}: {recount.upstream} said {reported:,}, the tokenizer says {counted:,}"
        for side, reported, counted in (
            ("input", recount.reported_input, recount.recounted_input),
            ("output", recount.reported_output, recount.recounted_output),
        )
        if reported is not None and counted is not None and reported != counted
    ]
    return f"  {recount.event_id}  {recount.model}  {'; '.join(sides)}"


def _widest(recount: WidestRecount) -> dict[str, Any]:
    return {
        "event_id": recount.event_id,
        "upstream": recount.upstream,
        "model": recount.model,
        "recounted_at": write_timestamp(recount.recounted_at),
        "reported_input": recount.reported_input,
        "recounted_input": recount.recounted_input,
        "reported_output": recount.reported_output,
        "recounted_output": recount.recounted_output,
    }


def _percent(ppm: int) -> str:
    """Millionths as per cent with two decimals; cut off, not rounded."""
    whole, rest = divmod(abs(ppm), PPM_OF_PERCENT)
    return f"{'-' if ppm < 0 else ''}{whole}.{rest // 100:02}"


def _period(start: str | None, end: str | None, *, now: datetime) -> tuple[datetime, datetime]:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    try:
        return read_timestamp(start) if start else first, read_timestamp(end) if end else now
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it as 2026-11-01T00:00:00Z") from error
