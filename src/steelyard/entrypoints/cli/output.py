"""How commands speak: tables for people, JSON with --json, errors on standard error."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steelyard.app.stores import Stores, open_stores
from steelyard.settings import read_settings

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]

# Wide enough that no key is folded when the output goes to a file.
console = Console(highlight=False, soft_wrap=True)
error_console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def stores_opened() -> Generator[Stores]:
    """The books as the environment says; closed afterwards."""
    stores = open_stores(read_settings())
    try:
        yield stores
    finally:
        stores.database.close()


def print_json(document: Any) -> None:
    console.print(json.dumps(document, ensure_ascii=False, indent=2), markup=False, emoji=False)


def show(document: Mapping[str, Any], *, as_json: bool, title: str | None = None) -> None:
    """One thing, field by field."""
    if as_json:
        print_json(document)
        return
    if title:
        console.print(Text(title, style="bold green"))
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        if value is not None:
            console.print(Text.assemble((f"  {name:<{width}}  ", "dim"), str(value)))


def show_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    empty: str,
    right: Sequence[str] = (),
) -> None:
    """Many things of a kind; `columns` are those that the table shows, JSON has all."""
    if as_json:
        print_json(list(rows))
    elif not rows:
        console.print(Text(empty, style="dim"))
    else:
        console.print(make_table(rows, columns, right=right))


def make_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, right: Sequence[str] = ()
) -> Table:
    """Rows as a table; amounts and counts stand to the right."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        # A folded number is a wrong number; a folded name is only ugly.
        is_number = column in right
        table.add_column(
            column.replace("_", " "),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text("" if row.get(c) is None else str(row[c])) for c in columns))
    return table
