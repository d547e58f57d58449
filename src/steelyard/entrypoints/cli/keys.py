"""`steelyard key`: what callers send, where it belongs, and how long it works."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import typer

from steelyard.access.key_move import moved_key
from steelyard.access.limits import NO_LIMITS, LimitSet
from steelyard.access.store import AccessStore
from steelyard.access.virtual_key import VirtualKey, hash_secret, hint_of, make_secret
from steelyard.entrypoints.cli.limits import (
    AllowIpOption,
    AllowModelOption,
    AtOnceOption,
    InputTokensOption,
    OutputTokensOption,
    RequestsOption,
    TokensOption,
    changed_limits,
    limits_document,
)
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.entrypoints.cli.places import find_key_place, find_project_of, read_moment
from steelyard.ids import new_id, read_name
from steelyard.metering.usage_event import DisconnectPolicy
from steelyard.timestamp import write_timestamp

keys = typer.Typer(no_args_is_help=True, help="Virtual keys: what callers send.")

# Long enough to bring a new secret to every place that has the old one.
OVERLAP: Final = timedelta(days=1)

KeyArgument = Annotated[str, typer.Argument(help="The key's id, or organisation/department/key.")]
ExpiresOption = Annotated[
    str | None, typer.Option(help="From when on it works no more, as 2027-01-01T00:00:00Z.")
]

CacheOption = Annotated[
    int | None,
    typer.Option(min=1, help="How old an answer of the answer cache may be, in seconds."),
]


def register(application: typer.Typer) -> None:
    application.add_typer(keys, name="key")


@keys.command(
    "create", epilog="Example: `steelyard key create acme/research laptop --requests-per-minute 60`"
)
def create_key(
    place: Annotated[
        str, typer.Argument(help="organisation/department, or organisation/department/project")
    ],
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str | None, typer.Option(help="The project that it belongs to.")] = None,
    expires: ExpiresOption = None,
    disconnect: Annotated[
        DisconnectPolicy | None,
        typer.Option(help="What a caller that leaves is charged; default: as the gateway is set."),
    ] = None,
    cache: CacheOption = None,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    requests_at_once: AtOnceOption = None,
    input_tokens_max: InputTokensOption = None,
    output_tokens_max: OutputTokensOption = None,
    allow_model: AllowModelOption = None,
    allow_ip: AllowIpOption = None,
    json: JsonFlag = False,
) -> None:
    """Create a virtual key. Its secret is shown once, now, and is kept nowhere."""
    secret = make_secret()
    limits = changed_limits(
        NO_LIMITS,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        requests_at_once=requests_at_once,
        input_tokens_max=input_tokens_max,
        output_tokens_max=output_tokens_max,
        models=allow_model,
        ip_ranges=allow_ip,
    )
    with stores_opened() as stores:
        department, named = find_key_place(stores.access, place)
        if project is not None:
            named = find_project_of(stores.access, department, project)
        key = VirtualKey(
            id=new_id(),
            name=read_name(name),
            department=department,
            hint=hint_of(secret),
            created_at=stores.clock.now(),
            revoked_at=None,
            expires_at=read_moment(expires),
            project=named,
            disconnect_policy=disconnect,
            cache_ttl_s=cache,
        )
        secret_hash = hash_secret(secret, pepper=stores.pepper)
        stores.access.insert_key(key, secret_hash=secret_hash, limits=limits)
    title = "key created; this is the only time that its secret is shown"
    show({**_key(key, limits), "secret": secret}, as_json=json, title=title)


@keys.command("list", epilog="Example: `steelyard key list`")
def list_keys(json: JsonFlag = False) -> None:
    """List the keys, without their secrets."""
    with stores_opened() as stores:
        limits = stores.access.limits()
        rows = [
            _key(key, limits.get(("key", key.id), NO_LIMITS)) for key, _ in stores.access.all_keys()
        ]
    columns = ["id", "department", "project", "key", "hint", "created_at", "expires_at"]
    show_rows(
        rows,
        [*columns, "revoked_at"],
        as_json=json,
        empty="no key yet: steelyard key create ORG/DEPARTMENT NAME",
    )


@keys.command(
    "set", epilog="Example: `steelyard key set acme/research/laptop --expires 2027-01-01T00:00:00Z`"
)
def set_key(
    key: KeyArgument,
    expires: ExpiresOption = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="It works for ever.")] = False,
    cache: CacheOption = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Its requests use no answer cache.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Change when a key expires, a moment that has passed ends it at once; or its answer cache."""
    if (expires is not None and no_expiry) or (cache is not None and no_cache):
        raise typer.BadParameter("an option and its opposite")
    if (expires, no_expiry, cache, no_cache) == (None, False, None, False):
        raise typer.BadParameter("say --expires MOMENT, --no-expiry, --cache SECONDS or --no-cache")
    with stores_opened() as stores:
        changed = stores.access.find_key(key)
        if expires is not None or no_expiry:
            changed = replace(changed, expires_at=read_moment(expires))
        if cache is not None or no_cache:
            changed = replace(changed, cache_ttl_s=cache)
        stores.access.change_key(changed)
        document = _key(changed, _limits_of(stores.access, changed))
    show(document, as_json=json, title="key changed")


@keys.command(
    "rotate",
    epilog="Example: `steelyard key rotate acme/research/laptop --old-until 2027-01-01T00:00:00Z`",
)
def rotate_key(
    key: KeyArgument,
    old_until: Annotated[
        str | None,
        typer.Option(help="Until when the old secret works too; default: a day from now."),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="The old secret ends at once.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give a key a new secret, shown once; id, limits, budgets and usage stay those of the key."""
    if now and old_until is not None:
        raise typer.BadParameter("say --old-until MOMENT or --now, not both")
    secret = make_secret()
    with stores_opened() as stores:
        moment = stores.clock.now()
        ends_at = moment if now else read_moment(old_until) or moment + OVERLAP
        rotated = replace(stores.access.find_key(key), hint=hint_of(secret))
        secret_hash = hash_secret(secret, pepper=stores.pepper)
        stores.access.rotate_key(rotated, secret_hash=secret_hash, old_ends_at=ends_at)
        document = _key(rotated, _limits_of(stores.access, rotated))
    show(
        {**document, "old_secret_ends_at": write_timestamp(ends_at), "secret": secret},
        as_json=json,
        title="key rotated; this is the only time that its new secret is shown",
    )


@keys.command("move", epilog="Example: `steelyard key move acme/research/laptop --to acme/sales`")
def move_key(
    key: KeyArgument,
    to: Annotated[
        str, typer.Option(help="organisation/department, or organisation/department/project")
    ],
    json: JsonFlag = False,
) -> None:
    """Move a key within its organisation; requests that run already stay where they began."""
    with stores_opened() as stores:
        department, project = find_key_place(stores.access, to)
        moved = moved_key(stores.access.find_key(key), department=department, project=project)
        stores.access.move_key(moved)
        document = _key(moved, _limits_of(stores.access, moved))
    show(document, as_json=json, title="key moved")


@keys.command("revoke", epilog="Example: `steelyard key revoke acme/research/laptop`")
def revoke_key(
    key: KeyArgument,
    json: JsonFlag = False,
) -> None:
    """Revoke a key; within a second no gateway takes it any more."""
    with stores_opened() as stores:
        found = stores.access.find_key(key)
        revoked = stores.access.revoke_key(found.id, at=stores.clock.now())
        document = _key(revoked, _limits_of(stores.access, revoked))
    show(document, as_json=json, title="key revoked")


def _limits_of(access: AccessStore, key: VirtualKey) -> LimitSet:
    return access.limits().get(("key", key.id), NO_LIMITS)


def _key(key: VirtualKey, limits: LimitSet) -> dict[str, Any]:
    return {
        "key": key.name,
        "id": key.id,
        "department": key.department.path,
        "project": key.project.name if key.project else None,
        "hint": key.hint,
        **limits_document(limits),
        "disconnect_policy": key.disconnect_policy,
        "cache_ttl_s": key.cache_ttl_s,
        "created_at": write_timestamp(key.created_at),
        "expires_at": _moment(key.expires_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _moment(moment: datetime | None) -> str | None:
    return write_timestamp(moment) if moment else None
