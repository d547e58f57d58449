"""`steelyard price import genai-prices | litellm`: price books of public price lists.

Nothing is published before the report of what it would change, nor without a yes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.app.stores import Stores
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    print_json,
    show,
    show_rows,
    stores_opened,
)
from steelyard.entrypoints.cli.prices import find_version, prices, show_difference, summary
from steelyard.errors import Failure, Refusal
from steelyard.ids import read_name
from steelyard.money import read_currency
from steelyard.pricing.book_difference import BookDifference, compare_books
from steelyard.pricing.genai_import import import_genai_prices
from steelyard.pricing.imported_book import ImportedBook, ImportFindings
from steelyard.pricing.litellm_import import PriceListMalformed, import_litellm
from steelyard.pricing.price_book import PriceBook, publishable_version, version_in_force
from steelyard.pricing.price_book_text import write_price_book
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.timestamp import read_timestamp

imports = typer.Typer(no_args_is_help=True, help="Make price books of public price lists.")


class ImportEmpty(Refusal):
    """Nothing in the list could be imported."""

    code = "price_import_empty"


class ConfirmationMissing(Refusal):
    """Nothing was published. Look at the report, then say --publish --yes."""

    code = "confirmation_missing"


class PriceListUnavailable(Failure):
    """The package genai-prices is not installed: pip install 'steelyard[prices]'."""

    code = "price_list_unavailable"


class FileUnwritable(Failure):
    """The price book cannot be written there."""

    code = "file_unwritable"


Name = Annotated[str | None, typer.Option(help="The new book's name; unless given, of the day.")]
Start = Annotated[
    str | None, typer.Option(help="A day or a moment; the book begins then. Today unless given.")
]
CurrencyOption = Annotated[str, typer.Option(help="The currency of the list.")]
Out = Annotated[
    Path | None, typer.Option(help="Write the book to this file, to review it.", dir_okay=False)
]
Against = Annotated[
    str | None, typer.Option(help="Compare with this book; unless given, with that in force.")
]
Publish = Annotated[bool, typer.Option("--publish", help="Publish the book after the report.")]
Yes = Annotated[bool, typer.Option("--yes", help="Say yes to the report, with --publish.")]


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What the commands have in common."""

    name: str | None
    effective_from: str | None
    currency: str
    out: Path | None
    against: str | None
    is_published: bool
    is_confirmed: bool
    as_json: bool


def register(application: typer.Typer) -> None:
    del application
    prices.add_typer(imports, name="import")


@imports.command(
    "genai-prices",
    epilog="Example: `steelyard price import genai-prices --provider openai --out openai.yaml`",
)
def import_from_genai_prices(
    provider: Annotated[
        list[str] | None, typer.Option(help="Only this provider; may be given several times.")
    ] = None,
    name: Name = None,
    effective_from: Start = None,
    currency: CurrencyOption = "USD",
    out: Out = None,
    against: Against = None,
    publish: Publish = False,
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Make a price book of the genai-prices package, and say what it would change."""
    wishes = _Wishes(name, effective_from, currency, out, against, publish, yes, json)
    _import("genai-prices", wishes, lambda book: _read_genai_prices(book, provider or []))


@imports.command(
    "litellm",
    epilog="Example: `steelyard price import litellm model_prices.json --out litellm.yaml`",
)
def import_from_litellm(
    file: Annotated[Path, typer.Argument(help="LiteLLM's map of models.", dir_okay=False)],
    name: Name = None,
    effective_from: Start = None,
    currency: CurrencyOption = "USD",
    out: Out = None,
    against: Against = None,
    publish: Publish = False,
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Make a price book of LiteLLM's map of models, and say what it would change."""
    wishes = _Wishes(name, effective_from, currency, out, against, publish, yes, json)
    _import("litellm", wishes, lambda book: import_litellm(_read_list(file), book=book))


def _import(source: str, wishes: _Wishes, read: Callable[[PriceBook], ImportedBook]) -> None:
    """Report first; then write the file; then, if that is wished and confirmed, publish."""
    with stores_opened() as stores:
        imported = read(_empty_book(source, wishes, now=stores.clock.now()))
        if not imported.book.models:
            raise ImportEmpty("nothing in the list could be imported; --json lists why")
        difference = compare_books(_compared_book(stores, imported.book, wishes), imported.book)
        _report(imported, difference, as_json=wishes.as_json)
        text = write_price_book(imported.book)
        if wishes.out:
            _write(wishes.out, text)
        if not wishes.is_published:
            return
        if not wishes.is_confirmed:
            raise ConfirmationMissing
        # What is published is what the file says: it is read back as any other book is.
        version = publishable_version(read_price_book(text))
        stores.prices.publish(version, at=stores.clock.now())
        if not wishes.as_json:
            show(summary(version), as_json=False, title="price book published")


def _empty_book(source: str, wishes: _Wishes, *, now: datetime) -> PriceBook:
    starts = _read_start(wishes.effective_from) if wishes.effective_from else _midnight(now)
    return PriceBook(
        name=read_name(wishes.name or f"{source}-{starts:%Y-%m-%d}"),
        currency=read_currency(wishes.currency),
        effective_from=starts,
        models=(),
    )


def _read_start(text: str) -> datetime:
    try:
        return read_timestamp(f"{text}T00:00:00Z" if len(text) == len("2026-11-24") else text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}", param_hint="--effective-from") from error


def _midnight(moment: datetime) -> datetime:
    return datetime.combine(moment.astimezone(UTC).date(), time(), UTC)


def _read_genai_prices(book: PriceBook, wanted: list[str]) -> ImportedBook:
    try:
        from genai_prices import __version__
        from genai_prices.data import providers
    except ImportError as error:
        raise PriceListUnavailable from error
    known = {provider.id: provider for provider in providers}
    for provider_id in wanted:
        if provider_id not in known:
            hint = f"there is no provider {provider_id!r}; there are {', '.join(sorted(known))}"
            raise typer.BadParameter(hint, param_hint="--provider")
    chosen = [known[provider_id] for provider_id in dict.fromkeys(wanted)] or providers
    return import_genai_prices(chosen, book=book, version=__version__)


def _read_list(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PriceListMalformed(f"{file} cannot be read: {error}") from error


def _compared_book(stores: Stores, book: PriceBook, wishes: _Wishes) -> PriceBook | None:
    versions = stores.prices.versions()
    if wishes.against:
        return find_version(wishes.against, versions).book
    current = version_in_force(versions, at=stores.clock.now(), currency=book.currency)
    return current.book if current else None


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileUnwritable(f"{file} cannot be written: {error}") from error


def _report(imported: ImportedBook, difference: BookDifference, *, as_json: bool) -> None:
    findings = imported.findings
    if as_json:
        print_json({**difference.as_document(), **_findings_document(imported)})
        return
    show_difference(difference)
    _show_findings(findings)


def _findings_document(imported: ImportedBook) -> dict[str, Any]:
    findings = imported.findings
    return {
        "name": imported.book.name,
        "models": len(imported.book.models),
        "left_out": [{"model": f.model, "reason": f.reason} for f in findings.left_out],
        "later": [{"model": f.model, "starts": str(f.starts)} for f in findings.later],
        "unsupported": [{"model": f.model, "field": f.name} for f in findings.unsupported],
        "unsupported_counts": findings.unsupported_counts(),
    }


def _show_findings(findings: ImportFindings) -> None:
    if findings.left_out:
        console.print(Text(f"left out: {len(findings.left_out)}", style="bold"))
        rows = [{"model": found.model, "reason": found.reason} for found in findings.left_out]
        show_rows(rows, ["model", "reason"], as_json=False, empty="")
    if findings.unsupported:
        console.print(Text("fields that have no meter here", style="bold"))
        rows = [
            {"field": name, "models": count, "such_as": _first_model(findings, name)}
            for name, count in findings.unsupported_counts().items()
        ]
        show_rows(rows, ["field", "models", "such_as"], as_json=False, empty="", right=("models",))
    if findings.later:
        console.print(Text("prices that change later: import again for these days", style="bold"))
        rows = [{"model": found.model, "starts": str(found.starts)} for found in findings.later]
        show_rows(rows, ["model", "starts"], as_json=False, empty="")


def _first_model(findings: ImportFindings, name: str) -> str:
    return next(found.model for found in findings.unsupported if found.name == name)
