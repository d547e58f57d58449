"""`steelyard price publish | list | show`: what things cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.errors import Refusal
from steelyard.pricing.price_book import (
    PriceVersion,
    canonical_document,
    publishable_version,
    version_in_force,
)
from steelyard.pricing.price_book_yaml import PriceBookMalformed, read_price_book
from steelyard.timestamp import write_timestamp

prices = typer.Typer(no_args_is_help=True, help="Price books: what each meter of a model costs.")


class PriceVersionNotFound(Refusal):
    """There is no such price book. 'steelyard price list' shows what there is."""

    code = "price_version_not_found"


def register(application: typer.Typer) -> None:
    application.add_typer(prices, name="price")


@prices.command("publish", epilog="Example: `steelyard price publish price_books/demo.yaml`")
def publish(
    file: Annotated[Path, typer.Argument(help="A price book in YAML.", dir_okay=False)],
    json: JsonFlag = False,
) -> None:
    """Publish a price book. It applies from its effective date on, and never changes again."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PriceBookMalformed(f"{file} cannot be read: {error}") from error
    version = publishable_version(read_price_book(text))
    with stores_opened() as stores:
        stores.prices.publish(version, at=stores.clock.now())
    show(_summary(version), as_json=json, title="price book published")


@prices.command("list", epilog="Example: `steelyard price list`")
def list_versions(json: JsonFlag = False) -> None:
    """List the published price books, the newest last; the one in force is marked."""
    with stores_opened() as stores:
        versions = stores.prices.versions()
        in_force = version_in_force(versions, at=stores.clock.now()) if versions else None
    rows = [{**_summary(version), "in_force": version == in_force} for version in versions]
    columns = ["name", "currency", "effective_from", "models", "in_force"]
    show_rows(rows, columns, as_json=json, empty="no price book yet: steelyard price publish FILE")


@prices.command("show", epilog="Example: `steelyard price show demo-2026-11`")
def show_version(
    name: Annotated[str, typer.Argument(help="The name of a price book, or its hash.")],
    json: JsonFlag = False,
) -> None:
    """Show the prices of a price book."""
    with stores_opened() as stores:
        versions = stores.prices.versions()
    for version in versions:
        if name in {version.book.name, version.sha256}:
            _show(version, as_json=json)
            return
    raise PriceVersionNotFound(
        f"there is no price book {name!r}; 'steelyard price list' shows them"
    )


def _show(version: PriceVersion, *, as_json: bool) -> None:
    document = canonical_document(version.book)
    if as_json:
        show({"sha256": version.sha256, **document}, as_json=True)
        return
    show(_summary(version), as_json=False)
    rows = [
        {"model": entry["match"], "meter": meter, "amount": price["amount"], "per": price["per"]}
        for entry in document["models"]
        for meter, price in entry["prices"].items()
    ]
    columns = ["model", "meter", "amount", "per"]
    show_rows(rows, columns, as_json=False, empty="", right=("amount", "per"))


def _summary(version: PriceVersion) -> dict[str, Any]:
    return {
        "name": version.book.name,
        "sha256": version.sha256,
        "currency": version.book.currency,
        "effective_from": write_timestamp(version.book.effective_from),
        "models": len(version.book.models),
    }
