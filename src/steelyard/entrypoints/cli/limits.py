"""`steelyard limit`: how much may be asked of a place or a model, and by whom."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

import typer

from steelyard.access.limits import (
    LISTS,
    NO_LIMITS,
    NUMBERS,
    LimitMalformed,
    LimitScope,
    LimitSet,
)
from steelyard.access.store import AccessStore
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.entrypoints.cli.places import find_place, paths_by_id, scope_of

limits = typer.Typer(no_args_is_help=True, help="Limits: how much may be asked at a time.")

RequestsOption = Annotated[int | None, typer.Option(min=0, help="Most requests in any 60 seconds.")]
TokensOption = Annotated[
    int | None, typer.Option(min=0, help="Most tokens in any 60 seconds, in and out.")
]
AtOnceOption = Annotated[int | None, typer.Option(min=0, help="Most requests that run at once.")]
InputTokensOption = Annotated[int | None, typer.Option(min=1, help="Longest prompt, in tokens.")]
OutputTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens, all choices together.")
]
AllowModelOption = Annotated[
    list[str] | None, typer.Option(help="A model that may be used, or a pattern; again for more.")
]
AllowIpOption = Annotated[
    list[str] | None,
    typer.Option(help="Addresses that requests may come from, as 10.0.0.0/8; again for more."),
]
PlaceArgument = Annotated[
    str,
    typer.Argument(
        help="organisation, /department, /project or (with --key) /key; with --model, a model"
    ),
]
KeyFlag = Annotated[bool, typer.Option("--key", help="The place is a key.")]
ModelFlag = Annotated[bool, typer.Option("--model", help="The place is a model.")]

# What removes a limit is called as the option that sets it.
_NAMES: Final = {
    **{name.replace("_", "-"): name for name in NUMBERS},
    "allow-model": "models",
    "allow-ip": "ip_ranges",
}


def register(application: typer.Typer) -> None:
    application.add_typer(limits, name="limit")


@limits.command("set", epilog="Example: `steelyard limit set acme --tokens-per-minute 100000`")
def set_limits(
    place: PlaceArgument,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    requests_at_once: AtOnceOption = None,
    input_tokens_max: InputTokensOption = None,
    output_tokens_max: OutputTokensOption = None,
    allow_model: AllowModelOption = None,
    allow_ip: AllowIpOption = None,
    key: KeyFlag = False,
    model: ModelFlag = False,
    json: JsonFlag = False,
) -> None:
    """Set limits of a place or a model; those that are not named stay."""
    with stores_opened() as stores:
        scope, scope_id = _find(stores.access, place, is_key=key, is_model=model)
        known = stores.access.limits().get((scope, scope_id), NO_LIMITS)
        changed = changed_limits(
            known,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            requests_at_once=requests_at_once,
            input_tokens_max=input_tokens_max,
            output_tokens_max=output_tokens_max,
            models=allow_model,
            ip_ranges=allow_ip,
        )
        if scope == "model" and (changed.models or changed.ip_ranges):
            raise LimitMalformed("a model is limited in numbers only")
        stores.access.set_limits(scope, scope_id, changed)
    show(
        {"place": place, "scope": scope, **limits_document(changed)},
        as_json=json,
        title="limit set",
    )


@limits.command("list", epilog="Example: `steelyard limit list`")
def list_limits(json: JsonFlag = False) -> None:
    """List the limits of all places and models; what settings say comes on top."""
    with stores_opened() as stores:
        paths = paths_by_id(stores.access)
        rows = sorted(
            (
                {"place": paths.get(id_, id_), "scope": scope, **limits_document(found)}
                for (scope, id_), found in stores.access.limits().items()
            ),
            key=lambda row: (row["scope"] == "model", row["place"]),
        )
    told = [{**row, "limits": _words(row)} for row in rows] if not json else rows
    show_rows(
        told,
        ["place", "scope", "limits"],
        as_json=json,
        empty="no limit yet: steelyard limit set ORG --requests-per-minute 600",
    )


@limits.command(
    "remove", epilog="Example: `steelyard limit remove acme tokens-per-minute allow-model`"
)
def remove_limits(
    place: PlaceArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which of them, named as the options of `set`; default: all."),
    ] = None,
    key: KeyFlag = False,
    model: ModelFlag = False,
    json: JsonFlag = False,
) -> None:
    """Remove limits of a place or a model: those that are named, or all."""
    with stores_opened() as stores:
        scope, scope_id = _find(stores.access, place, is_key=key, is_model=model)
        known = stores.access.limits().get((scope, scope_id), NO_LIMITS)
        left = _without(known, names) if names else NO_LIMITS
        stores.access.set_limits(scope, scope_id, left)
    document = {"place": place, "scope": scope, **limits_document(left)}
    show(document, as_json=json, title="limit removed")


def changed_limits(
    known: LimitSet,
    *,
    models: Sequence[str] | None,
    ip_ranges: Sequence[str] | None,
    **numbers: int | None,
) -> LimitSet:
    """Limits with those that are named; raises LimitMalformed."""
    named: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if models:
        named["models"] = tuple(_entry(text) for text in models)
    if ip_ranges:
        named["ip_ranges"] = tuple(_entry(text) for text in ip_ranges)
    return replace(known, **named)


def limits_document(found: LimitSet) -> dict[str, Any]:
    """Limits, named as the options that set them."""
    numbers = {name: getattr(found, name) for name in NUMBERS}
    lists = {"allow_model": found.models, "allow_ip": found.ip_ranges}
    return numbers | {name: ", ".join(entries) or None for name, entries in lists.items()}


def _words(row: Mapping[str, Any]) -> str:
    """Limits in one cell of a table: most places have few of them."""
    said = {name.replace("_", " "): row[name] for name in (*NUMBERS, "allow_model", "allow_ip")}
    return "; ".join(f"{name} {value}" for name, value in said.items() if value is not None)


def _without(known: LimitSet, names: Sequence[str]) -> LimitSet:
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        raise LimitMalformed(f"{unknown[0]!r} is no limit; there is {', '.join(_NAMES)}")
    return replace(known, **{_NAMES[name]: () if _NAMES[name] in LISTS else None for name in names})


def _find(
    access: AccessStore, place: str, *, is_key: bool, is_model: bool
) -> tuple[LimitScope, str]:
    if is_model:
        return "model", _entry(place)
    found = find_place(access, place, is_key=is_key)
    return scope_of(found), found.id


def _entry(text: str) -> str:
    """One entry of a list; raises LimitMalformed."""
    if not text.strip() or len(text) > 256 or not text.isprintable():
        raise LimitMalformed(f"{text[:50]!r} names nothing")
    return text.strip()
