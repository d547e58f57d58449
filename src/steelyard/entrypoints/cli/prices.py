"""`steelyard price publish | list | show | lint | diff | schema`: what things cost."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    print_json,
    show,
    show_rows,
    stores_opened,
)
from steelyard.errors import Refusal
from steelyard.pricing.book_difference import BookDifference, compare_books
from steelyard.pricing.book_lint import lint_book
from steelyard.pricing.price_book import (
    PriceBook,
    PriceVersion,
    canonical_document,
    publishable_version,
    version_in_force,
    versions_in_force,
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
    text = read_text(file)
    with stores_opened() as stores:
        version = publishable_version(read_price_book(text, published=stores.prices.versions()))
        stores.prices.publish(version, at=stores.clock.now())
    show(summary(version), as_json=json, title="price book published")


@prices.command("list", epilog="Example: `steelyard price list`")
def list_versions(json: JsonFlag = False) -> None:
    """List the published price books, the newest last; those in force are marked."""
    with stores_opened() as stores:
        versions = stores.prices.versions()
        in_force = list(versions_in_force(versions, at=stores.clock.now()))
    rows = [{**summary(version), "in_force": version in in_force} for version in versions]
    columns = ["name", "applies_to", "currency", "effective_from", "models", "in_force"]
    show_rows(rows, columns, as_json=json, empty="no price book yet: steelyard price publish FILE")


@prices.command("show", epilog="Example: `steelyard price show demo-2026-11`")
def show_version(
    name: Annotated[str, typer.Argument(help="The name of a price book, or its hash.")],
    json: JsonFlag = False,
) -> None:
    """Show the prices of a price book."""
    with stores_opened() as stores:
        version = find_version(name, stores.prices.versions())
    document = canonical_document(version.book)
    if json:
        print_json({"sha256": version.sha256, **document})
        return
    show(summary(version), as_json=False)
    rows = [row for entry in document["models"] for row in _price_rows(entry)]
    columns = ["model", "meter", "amount", "per", "when"]
    show_rows(rows, columns, as_json=False, empty="", right=("amount", "per"))


@prices.command("lint", epilog="Example: `steelyard price lint price_books/demo.yaml`")
def lint(
    file: Annotated[Path, typer.Argument(help="A price book in YAML.", dir_okay=False)],
    json: JsonFlag = False,
) -> None:
    """Look over a price book before it is published: errors end with 1, warnings do not."""
    text = read_text(file)
    with stores_opened() as stores:
        published, now = stores.prices.versions(), stores.clock.now()
    book = read_price_book(text, published=published)
    current = version_in_force(
        published, at=now, applies_to=book.applies_to, currency=book.currency
    )
    warnings = lint_book(book, now=now, current=current.book if current else None)
    rows = [{"warning": w.code, "model": w.model, "text": w.text} for w in warnings]
    show_rows(rows, ["warning", "model", "text"], as_json=json, empty="nothing to say against it")


@prices.command("diff", epilog="Example: `steelyard price diff demo-2026-11 price_books/demo.yaml`")
def diff(
    old: Annotated[str, typer.Argument(help="A name, a hash, or a file.")],
    new: Annotated[str, typer.Argument(help="A name, a hash, or a file.")],
    json: JsonFlag = False,
) -> None:
    """Show what one price book changes of another."""
    with stores_opened() as stores:
        versions = stores.prices.versions()
    books = [_find_book(name, versions) for name in (old, new)]
    difference = compare_books(*books)
    if json:
        print_json(difference.as_document())
    else:
        show_difference(difference)


@prices.command("schema", epilog="Example: `steelyard price schema > price_book.schema.json`")
def schema() -> None:
    """Print the JSON Schema of price books, for editors."""
    text = resources.files("steelyard.pricing").joinpath("price_book.schema.json").read_text()
    console.print(text, markup=False, emoji=False, end="")


def read_text(file: Path) -> str:
    """The text of a price book's file; raises PriceBookMalformed if there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PriceBookMalformed(f"{file} cannot be read: {error}") from error


def find_version(name: str, versions: Sequence[PriceVersion]) -> PriceVersion:
    """The published book of this name or hash; raises PriceVersionNotFound."""
    for version in versions:
        if name in {version.book.name, version.sha256}:
            return version
    raise PriceVersionNotFound(
        f"there is no price book {name!r}; 'steelyard price list' shows them"
    )


def summary(version: PriceVersion) -> dict[str, Any]:
    book = version.book
    applies_to = book.applies_to
    percent = f" {book.base.percent}%" if book.base and book.base.percent else ""
    return {
        "name": book.name,
        "sha256": version.sha256,
        "applies_to": f"{applies_to.kind} {applies_to.name}".rstrip(),
        "currency": book.currency,
        "effective_from": write_timestamp(book.effective_from),
        "models": len(book.models),
        "made_from": f"{book.base.name}{percent}" if book.base else None,
    }


def show_difference(difference: BookDifference) -> None:
    """The difference for people: what comes, what goes, and each price that changes."""
    counts = {
        "added": len(difference.added),
        "removed": len(difference.removed),
        "changed": len({change.model for change in difference.changed}),
        "unchanged": difference.unchanged_count,
    }
    for title in ("added", "removed"):
        for match in getattr(difference, title):
            console.print(Text(f"{title}: {match}", style="green" if title == "added" else "red"))
    rows = [
        {"model": c.model, "meter": c.meter, "old": c.old or "-", "new": c.new or "-"}
        for c in difference.changed
    ]
    if rows:
        show_rows(rows, ["model", "meter", "old", "new"], as_json=False, empty="")
    show(counts, as_json=False, title="difference of price books")


def _find_book(name: str, versions: Sequence[PriceVersion]) -> PriceBook:
    if Path(name).is_file():
        return read_price_book(read_text(Path(name)), published=versions)
    return find_version(name, versions).book


def _price_rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each amount: of a price, of its tiers, and of its windows with theirs."""
    rows: list[dict[str, Any]] = []
    for meter, price in entry["prices"].items():
        for stated in (price, *price.get("windows", ())):
            when = (
                f"{stated['from']}-{stated['to']} {stated['time_zone']}" if "from" in stated else ""
            )
            amounts = [(stated["amount"], when)]
            for tier in stated.get("tiers", ()):
                amounts.append((tier["amount"], f"{when} above {tier['above']}".lstrip()))
            rows += [
                {
                    "model": entry["match"],
                    "meter": meter,
                    "amount": amount,
                    "per": price["per"],
                    "when": condition,
                }
                for amount, condition in amounts
            ]
    return rows
