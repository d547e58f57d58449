"""`steelyard suspense | quarantine`: what the worker would not settle, and what a person decides."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from steelyard.billing.event_rating import EventNotRateable
from steelyard.billing.quarantine import QuarantinedRecord, dismiss_record, find_record
from steelyard.billing.suspense import (
    DecisionUnclear,
    SuspendedEvent,
    amount_of,
    decide_event,
    find_suspended,
)
from steelyard.entrypoints.cli.funds import TAKES_NEGATIVE, IdOption, ReasonOption, command_of
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.money import read_decimal, write_decimal
from steelyard.pricing.price_book import CanonicalDocument
from steelyard.timestamp import write_timestamp

suspense = typer.Typer(
    no_args_is_help=True, help="Suspense: events that gateway and worker rate differently."
)
quarantine = typer.Typer(
    no_args_is_help=True, help="Quarantine: log records that must not move money."
)

EventArgument = Annotated[str, typer.Argument(metavar="EVENT", help="The event's id.")]
HashArgument = Annotated[
    str, typer.Argument(metavar="RECORD", help="The record's hash, or its beginning.")
]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many.")]


def register(application: typer.Typer) -> None:
    application.add_typer(suspense, name="suspense")
    application.add_typer(quarantine, name="quarantine")


@suspense.command("list", epilog="Example: `steelyard suspense list`")
def list_suspense(
    with_decided: Annotated[
        bool, typer.Option("--all", help="Those that were decided on, too.")
    ] = False,
    limit: LimitOption = 100,
    json: JsonFlag = False,
) -> None:
    """List the events that wait in suspense, the oldest first."""
    with stores_opened() as stores:
        with stores.books.write() as unit:
            found = unit.list_suspended(with_decided=with_decided, limit=limit)
        documents = stores.audit.price_documents()
    rows = [_event(event, documents) for event in found]
    columns = ["ended_at", "model", "held", "gateway", "worker", "decided", "currency", "id"]
    numbers = ("held", "gateway", "decided")
    show_rows(rows, columns, as_json=json, empty="nothing waits in suspense", right=numbers)


@suspense.command(
    "show", epilog="Example: `steelyard suspense show 01a20be2-6f1b-774b-814c-cac873a757d4`"
)
def show_suspense(event_id: EventArgument, json: JsonFlag = False) -> None:
    """Show what gateway and worker make of an event, what was held, and how it was decided."""
    with stores_opened() as stores:
        with stores.books.write() as unit:
            event = find_suspended(unit, event_id)
        documents = stores.audit.price_documents()
    show(_event(event, documents), as_json=json)


@suspense.command(
    "decide",
    context_settings=TAKES_NEGATIVE,
    epilog="Example: `steelyard suspense decide 01a20be2-6f1b-774b-814c-cac873a757d4 --free --reason late`",
)
def decide(
    event_id: EventArgument,
    reason: ReasonOption,
    amount: Annotated[str | None, typer.Option(help="Charge so much.")] = None,
    as_gateway: Annotated[
        bool, typer.Option("--as-gateway", help="Charge what the gateway said.")
    ] = False,
    as_worker: Annotated[
        bool, typer.Option("--as-worker", help="Charge what the worker rates.")
    ] = False,
    free: Annotated[bool, typer.Option("--free", help="Charge nothing.")] = False,
    command_id: IdOption = None,
    json: JsonFlag = False,
) -> None:
    """Decide what a suspended event costs; the rest of what was held for it returns."""
    if (amount is not None) + as_gateway + as_worker + free != 1:
        raise DecisionUnclear
    with stores_opened() as stores:
        documents = stores.audit.price_documents()
        picos = 0 if amount is None else read_decimal(amount)
        if as_gateway or as_worker:
            with stores.books.write() as unit:
                event = find_suspended(unit, event_id)
            picos = amount_of(event, "gateway" if as_gateway else "worker", documents)
        command = command_of(stores, reason, command_id)
        decided = decide_event(stores.books, event_id, picos=picos, command=command)
    document = {
        "event_id": event_id,
        "amount": write_decimal(decided.decision.picos),
        "returned": write_decimal(decided.event.held.picos - decided.decision.picos),
        "currency": decided.event.held.currency,
        "transaction_id": decided.decision.command_id,
        "is_repeat": decided.is_repeat,
    }
    show(document, as_json=json, title="decided")


@quarantine.command("list", epilog="Example: `steelyard quarantine list`")
def list_quarantine(
    with_dismissed: Annotated[
        bool, typer.Option("--all", help="Those that were dismissed, too.")
    ] = False,
    limit: LimitOption = 100,
    json: JsonFlag = False,
) -> None:
    """List the records that wait in quarantine, the oldest first."""
    with stores_opened() as stores, stores.books.write() as unit:
        found = unit.list_quarantined(with_dismissed=with_dismissed, limit=limit)
    columns = ["quarantined_at", "reason", "dismissed_by", "record"]
    rows = [_record(record) for record in found]
    show_rows(rows, columns, as_json=json, empty="nothing waits in quarantine")


@quarantine.command("show", epilog="Example: `steelyard quarantine show 5f2c9a`")
def show_quarantine(content_hash: HashArgument, json: JsonFlag = False) -> None:
    """Show a record as it came, why it moved no money, and whether its hold is still open."""
    with stores_opened() as stores, stores.books.write() as unit:
        record = find_record(unit, content_hash)
        hold_id = record.hold_id
        is_open = hold_id is not None and bool(unit.read_holds([hold_id]))
    show({**_record(record), "hold_is_open": is_open, "body": record.body}, as_json=json)


@quarantine.command(
    "dismiss",
    epilog='Example: `steelyard quarantine dismiss 5f2c9a --release-hold --reason "disk was damaged"`',
)
def dismiss(
    content_hash: HashArgument,
    reason: ReasonOption,
    release_hold: Annotated[
        bool, typer.Option("--release-hold", help="Give back what its hold has set aside.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Say that you have looked at a record: it moves no money, and `verify` is content with it."""
    with stores_opened() as stores:
        command = command_of(stores, reason)
        record, hold = dismiss_record(
            stores.books, content_hash, should_release=release_hold, command=command
        )
    document = {
        "record": record.content_hash,
        "released_hold_id": hold.id if hold else None,
        "released": write_decimal(hold.amount.picos) if hold else None,
    }
    show(document, as_json=json, title="dismissed")


def _event(
    event: SuspendedEvent, documents: Mapping[str, CanonicalDocument]
) -> dict[str, str | None]:
    try:
        worker, complaint = write_decimal(amount_of(event, "worker", documents)), None
    except EventNotRateable as error:
        worker, complaint = None, str(error)
    decision = event.decision
    return {
        "id": event.id,
        "ended_at": event.record.ended_at,
        "model": event.record.model_served,
        "organisation_id": event.organisation_id,
        "department_id": event.department_id,
        "payer_id": event.payer_id,
        "price_version": event.record.price_version,
        "held": write_decimal(event.held.picos),
        "gateway": event.record.amount,
        "worker": worker,
        "complaint": complaint,
        "currency": event.held.currency,
        "decided": write_decimal(decision.picos) if decision else None,
        "decided_at": write_timestamp(decision.decided_at) if decision else None,
        "decided_by": decision.actor if decision else None,
        "decided_for": decision.reason if decision else None,
    }


def _record(record: QuarantinedRecord) -> dict[str, Any]:
    dismissal = record.dismissal
    return {
        "record": record.content_hash,
        "quarantined_at": write_timestamp(record.quarantined_at),
        "log_id": record.log_id,
        "position": record.position,
        "reason": record.reason,
        "hold_id": record.hold_id,
        "dismissed_at": write_timestamp(dismissal.dismissed_at) if dismissal else None,
        "dismissed_by": dismissal.actor if dismissal else None,
        "dismissed_for": dismissal.reason if dismissal else None,
        "released_hold_id": dismissal.released_hold_id if dismissal else None,
    }
