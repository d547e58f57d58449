"""`steelyard org | department | key`: who may call, and who pays."""

from datetime import datetime
from typing import Annotated, Any

import typer

from steelyard.access.store import AccessStore
from steelyard.access.tenant import Department, Organisation, PaysFrom
from steelyard.access.virtual_key import VirtualKey, hash_secret, hint_of, make_secret
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.ids import new_id, read_name
from steelyard.money import read_currency
from steelyard.timestamp import write_timestamp

organisations = typer.Typer(no_args_is_help=True, help="Organisations: who pays.")
departments = typer.Typer(no_args_is_help=True, help="Departments: whose use it is.")
keys = typer.Typer(no_args_is_help=True, help="Virtual keys: what callers send.")


def register(application: typer.Typer) -> None:
    application.add_typer(organisations, name="org")
    application.add_typer(departments, name="department")
    application.add_typer(keys, name="key")


@organisations.command("create", epilog="Example: `steelyard org create acme --currency EUR`")
def create_organisation(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.")],
    currency: Annotated[str, typer.Option(help="What it pays in, as in ISO 4217.")] = "USD",
    json: JsonFlag = False,
) -> None:
    """Create an organisation."""
    with stores_opened() as stores:
        organisation = Organisation(
            new_id(), read_name(name), read_currency(currency), stores.clock.now()
        )
        stores.access.insert_organisation(organisation)
    show(_organisation(organisation), as_json=json, title="organisation created")


@organisations.command("list", epilog="Example: `steelyard org list --json`")
def list_organisations(json: JsonFlag = False) -> None:
    """List the organisations."""
    with stores_opened() as stores:
        rows = [_organisation(organisation) for organisation in stores.access.organisations()]
    columns = ["organisation", "currency", "created_at"]
    show_rows(rows, columns, as_json=json, empty="no organisation yet: steelyard org create NAME")


@departments.command(
    "create", epilog="Example: `steelyard department create acme/research --pays-from department`"
)
def create_department(
    path: Annotated[str, typer.Argument(help="organisation/department")],
    pays_from: Annotated[
        str,
        typer.Option(
            help="Whose balance it spends: that of its `organisation`, or its own (`department`)."
        ),
    ] = "organisation",
    json: JsonFlag = False,
) -> None:
    """Create a department in an organisation."""
    organisation_name, _, name = path.partition("/")
    with stores_opened() as stores:
        department = Department(
            id=new_id(),
            organisation=stores.access.find_organisation(organisation_name),
            name=read_name(name),
            pays_from=_read_pays_from(pays_from),
            created_at=stores.clock.now(),
        )
        stores.access.insert_department(department)
    show(_department(department), as_json=json, title="department created")


@departments.command("list", epilog="Example: `steelyard department list`")
def list_departments(json: JsonFlag = False) -> None:
    """List the departments of all organisations."""
    with stores_opened() as stores:
        rows = [_department(department) for department in stores.access.departments()]
    columns = ["department", "pays_from", "currency", "created_at"]
    show_rows(
        rows, columns, as_json=json, empty="no department yet: steelyard department create ORG/NAME"
    )


@keys.command(
    "create", epilog="Example: `steelyard key create acme/research laptop --requests-per-minute 60`"
)
def create_key(
    department: Annotated[str, typer.Argument(help="organisation/department")],
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Most requests in any 60 seconds.")
    ] = None,
    input_tokens_max: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt, in tokens.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Create a virtual key. Its secret is shown once, now, and is kept nowhere."""
    secret = make_secret()
    with stores_opened() as stores:
        key = VirtualKey(
            id=new_id(),
            name=read_name(name),
            department=stores.access.find_department(department),
            hint=hint_of(secret),
            requests_per_minute=requests_per_minute,
            input_tokens_max=input_tokens_max,
            created_at=stores.clock.now(),
            revoked_at=None,
        )
        stores.access.insert_key(key, secret_hash=hash_secret(secret, pepper=stores.pepper))
    title = "key created; this is the only time that its secret is shown"
    show({**_key(key), "secret": secret}, as_json=json, title=title)


@keys.command("list", epilog="Example: `steelyard key list`")
def list_keys(json: JsonFlag = False) -> None:
    """List the keys, without their secrets."""
    with stores_opened() as stores:
        rows = [_key(key) for key, _ in stores.access.all_keys()]
    columns = ["id", "department", "key", "hint", "created_at", "revoked_at"]
    show_rows(
        rows, columns, as_json=json, empty="no key yet: steelyard key create ORG/DEPARTMENT NAME"
    )


@keys.command("revoke", epilog="Example: `steelyard key revoke acme/research/laptop`")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, or organisation/department/key.")],
    json: JsonFlag = False,
) -> None:
    """Revoke a key; within a second no gateway takes it any more."""
    with stores_opened() as stores:
        revoked = stores.access.revoke_key(_key_id(stores.access, key), at=stores.clock.now())
    show(_key(revoked), as_json=json, title="key revoked")


def _key_id(access: AccessStore, wanted: str) -> str:
    paths = {f"{key.department.path}/{key.name}": key.id for key, _ in access.all_keys()}
    return paths.get(wanted, wanted)


def _read_pays_from(text: str) -> PaysFrom:
    if text == "organisation" or text == "department":
        return text
    raise typer.BadParameter("--pays-from is organisation or department")


def _organisation(organisation: Organisation) -> dict[str, Any]:
    return {
        "organisation": organisation.name,
        "id": organisation.id,
        "currency": organisation.currency,
        "created_at": write_timestamp(organisation.created_at),
    }


def _department(department: Department) -> dict[str, Any]:
    return {
        "department": department.path,
        "id": department.id,
        "pays_from": department.pays_from,
        "currency": department.organisation.currency,
        "created_at": write_timestamp(department.created_at),
    }


def _key(key: VirtualKey) -> dict[str, Any]:
    return {
        "key": key.name,
        "id": key.id,
        "department": key.department.path,
        "hint": key.hint,
        "requests_per_minute": key.requests_per_minute,
        "input_tokens_max": key.input_tokens_max,
        "created_at": write_timestamp(key.created_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _moment(moment: datetime | None) -> str | None:
    return write_timestamp(moment) if moment else None
