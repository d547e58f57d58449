"""`steelyard tokens`: one text counted by several models, side by side, with what it would cost."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from steelyard.clock import SystemClock
from steelyard.counting.fast_path import add_fast_path
from steelyard.counting.libraries import open_tokenizer
from steelyard.counting.model_counter import ModelCounter
from steelyard.counting.pin import Proof, Registered
from steelyard.counting.registry import OpenedTokenizer
from steelyard.counting.tokenizer_files import read_tokenizer_files
from steelyard.entrypoints.cli.output import (
    JsonFlag,
    console,
    make_table,
    print_json,
    stores_opened,
)
from steelyard.entrypoints.cli.tokenizers import open_registry
from steelyard.errors import Refusal
from steelyard.metering.usage import INPUT_TEXT, text_usage
from steelyard.money import write_decimal
from steelyard.pricing.price_book import LIST, PriceVersion, versions_in_force
from steelyard.pricing.rating import rate_usage
from steelyard.settings import read_settings
from steelyard.timestamp import write_timestamp

PIECES_SHOWN_MAX = 2_000
FAST_PATH_CHARACTERS_MIN = 1_000_000
COLOURS = ("on grey23", "on dark_blue", "on dark_green", "on purple4", "on orange4")


class TextUnreadable(Refusal):
    """The text cannot be read: it is not in UTF-8."""

    code = "text_unreadable"


@dataclass(frozen=True, slots=True)
class Priced:
    """What so many tokens of input cost by a price book that is in force."""

    amount: str
    currency: str
    book: str


def register(application: typer.Typer) -> None:
    application.command(
        "tokens",
        epilog="Example: `steelyard tokens '你好, world' --model gpt-4o --model llama-2-7b`",
    )(tokens)


def tokens(
    text: Annotated[str, typer.Argument(help="A text, a file, or - for standard input.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A registered model, or a tokenizer's folder or file."),
    ] = None,
    pieces: Annotated[
        bool, typer.Option("--pieces/--no-pieces", help="Show where each token begins.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Count a text's tokens for each model, and what they would cost as input."""
    content = _read_text(text)
    names = model or [registered.model for registered in open_registry().all()]
    # The fast path takes seconds to check itself; a short text is counted sooner without it.
    is_long = len(content) > FAST_PATH_CHARACTERS_MIN
    counters = [(name, _open_counter(name, is_fast=is_long)) for name in names]
    versions = _versions_in_force()
    rows = [_row(name, counter, content, versions) for name, counter in counters]
    if json:
        print_json({"bytes": len(content.encode()), "models": rows})
        return
    if not rows:
        console.print(Text("no tokenizer yet: steelyard tokenizer add MODEL --from …", "dim"))
        return
    columns = ["model", "vocabulary", "tokens", "bytes_per_token", "cost", "currency", "price_book"]
    console.print(make_table(rows, columns, right=("tokens", "bytes_per_token", "cost")))
    if pieces:
        for name, counter in counters:
            console.print(Text(name, style="bold"))
            console.print(coloured(counter.pieces(content)))


def coloured(pieces: list[bytes]) -> Text:
    """The text with a background that changes at each token; parts of a character as their bytes."""
    shown = Text()
    colours = itertools.cycle(COLOURS)
    for piece in pieces[:PIECES_SHOWN_MAX]:
        shown.append(_printable(piece), style=next(colours))
    hidden = len(pieces) - PIECES_SHOWN_MAX
    if hidden > 0:
        shown.append(f" and {hidden} tokens more", style="dim")
    return shown


def _printable(piece: bytes) -> str:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "".join(f"‹{byte:02x}›" for byte in piece)
    # A line ends where it ends in the text; other signs that move the cursor are spelt out.
    return "".join(_spelt(character) for character in text)


def _spelt(character: str) -> str:
    if character == "\n":
        return "↵\n"
    # Joiners are kept: without them a family of emoji falls apart into its members.
    is_shown = character.isprintable() or character in "\u200d\ufe0f\u3000"
    return character if is_shown else f"‹{ord(character):02x}›"


def _read_text(given: str) -> str:
    try:
        if given == "-":
            return sys.stdin.buffer.read().decode()
        path = Path(given)
        if len(given) < 4096 and "\n" not in given and path.is_file():
            return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise TextUnreadable(f"the text is not in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise TextUnreadable(f"{given} cannot be read: {error.strerror}") from error
    return given


def _open_counter(name: str, *, is_fast: bool) -> ModelCounter:
    registry, clock = open_registry(), SystemClock()
    if registry.find(name) is None and Path(name).exists():
        files = read_tokenizer_files(Path(name))
        registered = Registered(
            model=name,
            pin=files.pin,
            proof=Proof(kind="none"),
            registered_at=write_timestamp(clock.now()),
            known_as=files.known_as,
        )
        tokenizer = open_tokenizer(files.vocabulary, files.pin)
        if is_fast:
            tokenizer = add_fast_path(tokenizer, files.vocabulary, files.pin)
        return ModelCounter(
            OpenedTokenizer(registered, tokenizer, files.chat_template), clock=clock
        )
    return ModelCounter(registry.open(name, is_fast=is_fast), clock=clock)


def _row(
    name: str, counter: ModelCounter, content: str, versions: list[PriceVersion]
) -> dict[str, Any]:
    count = counter.count_text(content)
    size = len(content.encode())
    priced = next(_prices(name, count, versions), None)
    return {
        "model": name,
        "vocabulary": counter.registered.known_as,
        "tokens": count,
        "bytes_per_token": f"{size / count:.2f}" if count else None,
        "cost": priced.amount if priced else None,
        "currency": priced.currency if priced else None,
        "price_book": priced.book if priced else None,
    }


def _prices(model: str, count: int, versions: list[PriceVersion]) -> Iterator[Priced]:
    now = SystemClock().now()
    for version in versions:
        listed = version.book.prices_of(model)
        if listed is None or listed.bearer_of(INPUT_TEXT) is None:
            continue
        charge = rate_usage(
            text_usage(input_tokens=count, output_tokens=0),
            prices=listed.at(now),
            currency=version.book.currency,
        )
        yield Priced(write_decimal(charge.total.picos), version.book.currency, version.book.name)


def _versions_in_force() -> list[PriceVersion]:
    """List prices of now; none where there are no books yet, since a count needs none."""
    settings = read_settings()
    if settings.database_url is None and not settings.books_path.exists():
        return []
    with stores_opened() as stores:
        versions, now = stores.prices.versions(), stores.clock.now()
    return [v for v in versions_in_force(versions, at=now) if v.book.applies_to == LIST]
