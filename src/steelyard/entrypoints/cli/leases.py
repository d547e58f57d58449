"""`steelyard lease`: what gateways may hold out of without asking, and the end of a lost one."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.app.stores import Stores
from steelyard.billing.lease_ending import (
    LeaseInUse,
    end_lease_by_hand,
    events_missing,
    find_lease,
    is_over,
    list_leases,
)
from steelyard.entrypoints.cli.funds import ReasonOption, command_of
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.eventlog.outbox_survey import (
    gateway_kept_away,
    gateway_of,
    outbox_of,
    records_of_lease,
)
from steelyard.ledger.lease import Lease
from steelyard.money import write_decimal
from steelyard.settings import read_settings
from steelyard.timestamp import write_timestamp

leases = typer.Typer(
    no_args_is_help=True, help="Leases: what gateways may hold out of without asking."
)


def register(application: typer.Typer) -> None:
    application.add_typer(leases, name="lease")


@leases.command("list", epilog="Example: `steelyard lease list`")
def list_out(json: JsonFlag = False) -> None:
    """List the leases that are out, the oldest first: who has what, since when, and how it stands."""
    with stores_opened() as stores:
        rows = [_lease(lease, stores) for lease in list_leases(stores.books)]
    columns = ["granted_at", "gateway", "amount", "currency", "status", "is_over", "payer_id", "id"]
    show_rows(rows, columns, as_json=json, empty="nothing is leased", right=("amount",))


@leases.command(
    "end",
    epilog='Example: `steelyard lease end 01a20be2-6f1b-774b-814c-cac873a757d4 --reason "host lost"`',
)
def end(
    lease_id: Annotated[str, typer.Argument(metavar="LEASE", help="The lease's id.")],
    reason: ReasonOption,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although events may still come: they would charge nobody."),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """End the lease of a gateway that never comes back: what is left of it returns to its payer."""
    with stores_opened() as stores:
        lease = find_lease(stores.books, lease_id)
        with _proved_silent(stores, lease, read_settings().outbox_dir, is_forced=force):
            command = command_of(stores, reason)
            lease = end_lease_by_hand(stores.books, lease_id, command=command)
        document = {**_lease(lease, stores), "returned": write_decimal(lease.amount.picos)}
    show(document, as_json=json, title="lease ended")


@contextmanager
def _proved_silent(
    stores: Stores, lease: Lease, outbox_dir: Path, *, is_forced: bool
) -> Generator[None]:
    """Refuse unless the lease's own outbox shows that no event of it is to come; while the block
    runs, its gateway cannot start."""
    if is_forced:
        yield
        return
    path = outbox_of(outbox_dir, lease.source)
    if path is None:
        raise LeaseInUse(
            f"the outbox of {lease.source} is not in {outbox_dir}, so nobody knows whether events "
            "of this lease are still to come; start its gateway where the outbox is, or say --force"
        )
    with gateway_kept_away(path) as is_away:
        if not is_away:
            raise LeaseInUse(f"its gateway is running on {path}, and returns the lease by itself")
        records = records_of_lease(path, lease.id)
        if records.open_attempts:
            raise LeaseInUse(
                f"{len(records.open_attempts)} attempts that hold from it are open in {path}; start "
                "the gateway once, and it resolves them"
            )
        missing = events_missing(stores.books, records.events)
        if missing:
            raise LeaseInUse(
                f"{len(missing)} events of it in {path} are not in the books yet, or wait in "
                f"quarantine ({min(missing)}); let the worker settle them, or dismiss them"
            )
        yield


def _lease(lease: Lease, stores: Stores) -> dict[str, Any]:
    return {
        "id": lease.id,
        "gateway": gateway_of(lease.source) or lease.source,
        "source": lease.source,
        "organisation_id": lease.organisation_id,
        "payer_id": lease.payer_id,
        "key_id": lease.key_id,
        "amount": write_decimal(lease.amount.picos),
        "currency": lease.amount.currency,
        "granted_at": write_timestamp(lease.granted_at),
        "expires_at": write_timestamp(lease.expires_at),
        "status": lease.status,
        "is_over": is_over(lease, at=stores.clock.now()),
        "last_event_id": lease.last_event_id,
        "run_id": lease.run_id,
    }
