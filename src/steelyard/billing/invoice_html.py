"""An invoice as one HTML file: no script, nothing loaded from elsewhere, and it prints well."""

from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources

from steelyard.billing.invoice_page import Cell, Fact, Group, Page, PageSection, PageTable, Sum

_LANGUAGES = {"en": "en", "zh": "zh-Hans"}
# A name or a reason that got past escaping could still load nothing and run nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_invoice_html(page: Page) -> str:
    """The whole file; equal pages give equal bytes."""
    return "\n".join(_document(page)) + "\n"


def _document(page: Page) -> Iterator[str]:
    style = resources.files("steelyard.billing").joinpath("invoice.css").read_text("utf-8")
    title = escape(f"{page.title} {page.number}")
    yield f'<!doctype html>\n<html lang="{_LANGUAGES[page.language]}">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>"
    yield f"<header>\n<div><h1>{escape(page.title)}</h1>"
    yield f'<p class="series">{escape(page.number)}</p></div>'
    yield f'<div class="to"><p class="label">{escape(page.organisation_label)}</p>'
    yield f"<p><strong>{escape(page.organisation)}</strong></p></div>\n</header>"
    yield from _facts(page.facts, name="facts")
    yield from _facts(page.figures, name="figures")
    for section in page.sections:
        yield from _section(page, section)
    yield "<footer>"
    yield from (f"<p>{escape(note)}</p>" for note in page.notes)
    yield f"<p>{escape(page.document_label)} <code>{escape(page.document_id)}</code></p>"
    yield "</footer>\n</body>\n</html>"


def _facts(facts: Iterable[Fact], *, name: str) -> Iterator[str]:
    yield f'<dl class="{name}">'
    for fact in facts:
        yield f"<div><dt>{escape(fact.label)}</dt><dd>{escape(fact.value)}</dd></div>"
    yield "</dl>"


def _section(page: Page, section: PageSection) -> Iterator[str]:
    yield f"<section>\n<h2>{escape(section.heading or page.summary_heading)}</h2>"
    yield '<table class="sums">\n<tbody>'
    yield from (_sum(one) for one in section.sums)
    yield "</tbody>\n</table>"
    for table in section.tables:
        yield from _table(table)
    yield "</section>"


def _sum(one: Sum) -> str:
    name = ' class="total"' if one.is_total else ""
    amount = _cell(one.amount, kind="number")
    return f"<tr{name}><td>{escape(one.label)}</td>{amount}</tr>"


def _table(table: PageTable) -> Iterator[str]:
    yield f"<h3>{escape(table.heading)}</h3>\n<table>\n<thead><tr>"
    for column in table.columns:
        yield f'<th scope="col"{_class(column.kind)}>{escape(column.label)}</th>'
    yield "</tr></thead>"
    for group in table.groups:
        yield from _group(table, group)
    yield "</table>"


def _group(table: PageTable, group: Group) -> Iterator[str]:
    yield "<tbody>"
    if group.heading is not None and group.amount is not None:
        span = len(table.columns) - 1
        heading = f'<td colspan="{span}">{escape(group.heading)}</td>'
        amount = _cell(group.amount, kind="number")
        yield f'<tr class="group">{heading}{amount}</tr>'
    for row in group.rows:
        cells = zip(row, table.columns, strict=True)
        told = (_cell(cell, kind=column.kind) for cell, column in cells)
        yield f"<tr>{''.join(told)}</tr>"
    yield "</tbody>"


def _cell(cell: Cell, *, kind: str) -> str:
    hidden = f'<span class="hidden" aria-hidden="true">{cell.hidden}</span>' if cell.hidden else ""
    return f"<td{_class(kind)}>{escape(cell.text)}{hidden}</td>"


def _class(kind: str) -> str:
    return "" if kind == "text" else f' class="{kind}"'
