"""An invoice as people read it: every text of a rendering, in its language, in its place.

HTML and PDF are both written from this, so that they cannot say different things. Made from the
document alone.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final, Literal

import msgspec

from steelyard.billing.invoice import (
    Invoice,
    InvoiceAdjustment,
    InvoiceLine,
    InvoiceSection,
    canonical_invoice,
    invoice_id,
)
from steelyard.billing.invoice_words import Language, Words
from steelyard.money import Currency, minor_digits, read_decimal, write_decimal
from steelyard.time_zone import load_time_zone
from steelyard.timestamp import read_timestamp

MILLION: Final = 10**6
# A unit price below this is told for a million units.
SMALL_PRICE: Final = read_decimal("0.001")


class Cell(msgspec.Struct, frozen=True):
    """A text; `hidden` takes the room of the digits that others of its column have and it has not,
    so that decimal points stand under each other."""

    text: str
    hidden: str = ""


class Fact(msgspec.Struct, frozen=True):
    label: str
    value: str


class Sum(msgspec.Struct, frozen=True):
    label: str
    amount: Cell
    is_total: bool


class Column(msgspec.Struct, frozen=True):
    """A short text is never broken; other texts share the room that is left."""

    label: str
    kind: Literal["text", "short", "number"]


class Group(msgspec.Struct, frozen=True):
    """Rows that belong together, with what they add up to."""

    heading: str | None
    amount: Cell | None
    rows: list[list[Cell]]


class PageTable(msgspec.Struct, frozen=True):
    heading: str
    columns: list[Column]
    groups: list[Group]


class PageSection(msgspec.Struct, frozen=True):
    heading: str | None
    sums: list[Sum]
    tables: list[PageTable]


class Page(msgspec.Struct, frozen=True):
    """`figures` are the few that everybody looks for."""

    language: Language
    title: str
    number: str
    organisation_label: str
    organisation: str
    facts: list[Fact]
    figures: list[Fact]
    summary_heading: str
    sections: list[PageSection]
    notes: list[str]
    document_label: str
    document_id: str
    page_label: str


def make_page(invoice: Invoice, *, language: Language) -> Page:
    """Everything that a rendering says of an invoice."""
    words = Words(language)
    is_only = len(invoice.sections) == 1
    from_balance = sum(read_decimal(section.from_balance) for section in invoice.sections)
    figures = [("total", invoice.total), *_settled(from_balance, read_decimal(invoice.to_pay))]
    return Page(
        language=language,
        title=words.say("invoice"),
        number=invoice.number,
        organisation_label=words.say("billed_to"),
        organisation=invoice.organisation.name,
        facts=_facts(invoice, words),
        figures=[
            Fact(words.say(word), f"{group_thousands(amount, invoice.currency)} {invoice.currency}")
            for word, amount in figures
        ],
        summary_heading=words.say("summary"),
        sections=[
            _section(invoice, section, words, heading=None if is_only else section.payer)
            for section in invoice.sections
        ],
        notes=[*_nothing(invoice, words), words.say("exact")],
        document_label=words.say("document"),
        document_id=invoice_id(canonical_invoice(invoice)),
        page_label=words.say("page", "{0}", "{1}"),
    )


def tell_day(timestamp: str, time_zone: str, words: Words) -> str:
    local: datetime = read_timestamp(timestamp).astimezone(load_time_zone(time_zone))
    return words.day(local.year, local.month, local.day)


def align_amounts(amounts: Sequence[str], currency: str) -> list[Cell]:
    """Amounts of one column, each with the room that its missing decimals would take."""
    texts = [group_thousands(amount, currency) for amount in amounts]
    decimals = [len(text.partition(".")[2]) for text in texts]
    most = max(decimals, default=0)
    return [
        Cell(text, ("." if most and not has else "") + "0" * (most - has))
        for text, has in zip(texts, decimals, strict=True)
    ]


def group_thousands(amount: str, currency: str) -> str:
    """'-1234.5' as '−1,234.50': thousands apart, no fewer decimals than the minor unit has."""
    sign, digits = ("−", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, _, decimals = digits.partition(".")
    decimals = decimals.ljust(minor_digits(Currency(currency)), "0")
    return f"{sign}{int(whole):,}" + (f".{decimals}" if decimals else "")


def _nothing(invoice: Invoice, words: Words) -> list[str]:
    is_empty = not any(section.lines for section in invoice.sections)
    return [words.say("nothing")] if is_empty else []


def _facts(invoice: Invoice, words: Words) -> list[Fact]:
    facts = {
        "number": invoice.number,
        "period": _period(invoice, words),
        "issued": tell_day(invoice.issued_at, invoice.time_zone, words),
        "time_zone": invoice.time_zone,
        "currency": invoice.currency,
        "requests": f"{invoice.requests:,}",
    }
    return [Fact(words.say(word), value) for word, value in facts.items()]


def _period(invoice: Invoice, words: Words) -> str:
    """From its first day to its last, where it begins and ends at midnight; else two moments."""
    start, end = (
        read_timestamp(moment).astimezone(load_time_zone(invoice.time_zone))
        for moment in (invoice.period.start, invoice.period.end)
    )
    if any((m.hour, m.minute, m.second, m.microsecond) != (0, 0, 0, 0) for m in (start, end)):
        return words.say("until", *(m.isoformat(" ", "seconds") for m in (start, end)))
    last = end.date() - timedelta(days=1)
    return words.say(
        "until",
        words.day(start.year, start.month, start.day),
        words.day(last.year, last.month, last.day),
    )


def _section(
    invoice: Invoice, section: InvoiceSection, words: Words, *, heading: str | None
) -> PageSection:
    tables: list[PageTable] = []
    if section.lines:
        tables.append(_usage_table(section.lines, words, invoice.currency))
    if section.adjustments:
        tables.append(_adjustment_table(section.adjustments, invoice, words))
    return PageSection(heading, _sums(invoice, section, words), tables)


def _sums(invoice: Invoice, section: InvoiceSection, words: Words) -> list[Sum]:
    """From usage to what is to pay; what lowers it has a minus sign. What is zero and need not be
    said is left out."""
    always = {"usage", "net", "total"}
    amounts = [
        ("usage", section.usage),
        ("not_covered", _negative(section.not_covered)),
        ("promotional", _negative(section.promotional)),
        ("adjusted", _negative(section.adjusted)),
        ("net", section.net),
        ("tax", section.tax),
        ("rounding", section.rounding),
        ("total", section.total),
        *_settled(read_decimal(section.from_balance), read_decimal(section.to_pay)),
        ("carried_forward", section.rounding_carried_forward),
    ]
    told = [
        (word, amount) for word, amount in amounts if word in always or read_decimal(amount) != 0
    ]
    cells = align_amounts([amount for _, amount in told], invoice.currency)
    return [
        Sum(words.say(word, invoice.tax_percent), cell, word in {"total", "to_pay"})
        for (word, _), cell in zip(told, cells, strict=True)
    ]


def _settled(from_balance: int, to_pay: int) -> list[tuple[str, str]]:
    """Where a total comes from or goes to, told without minus signs."""
    balance = "from_balance" if from_balance >= 0 else "to_balance"
    owed = "to_pay" if to_pay >= 0 else "in_favour"
    return [(balance, write_decimal(abs(from_balance))), (owed, write_decimal(abs(to_pay)))]


def _usage_table(lines: Sequence[InvoiceLine], words: Words, currency: str) -> PageTable:
    """A group for each key, late usage apart. The amounts of groups and rows are one column."""
    keyed = [(place, list(rows)) for place, rows in groupby(lines, key=_place)]
    amounts: list[str] = []
    for _, rows in keyed:
        amounts.append(write_decimal(sum(read_decimal(line.amount) for line in rows)))
        amounts.extend(line.amount for line in rows)
    cells = iter(align_amounts(amounts, currency))
    groups = [
        Group(
            _heading(rows[0], words),
            next(cells),
            [[*_usage_cells(line, words, currency), next(cells)] for line in rows],
        )
        for _, rows in keyed
    ]
    texts, numbers = ("model", "meter"), ("count", "unit_price", "amount")
    columns = [
        *(Column(words.say(word), "text") for word in texts),
        *(Column(words.say(word), "number") for word in numbers),
    ]
    return PageTable(words.say("usage_detail"), columns, groups)


def _place(line: InvoiceLine) -> tuple[str | None, str, str | None, str]:
    return line.used_in, line.department, line.project, line.key


def _heading(line: InvoiceLine, words: Words) -> str:
    path = [line.department, *([line.project] if line.project else [])]
    heading = " / ".join([*path, words.say("key", line.key)])
    return f"{heading} · {words.say('late', line.used_in)}" if line.used_in else heading


def _usage_cells(line: InvoiceLine, words: Words, currency: str) -> list[Cell]:
    return [
        Cell(line.model),
        Cell(words.meter(line.meter)),
        Cell(f"{int(line.count):,}"),
        Cell(_unit_price(line.unit_price, words, currency)),
    ]


def _unit_price(unit_price: str, words: Words, currency: str) -> str:
    picos = read_decimal(unit_price)
    if 0 < picos < SMALL_PRICE:
        return words.say("per_million", group_thousands(write_decimal(picos * MILLION), currency))
    return group_thousands(unit_price, currency)


def _adjustment_table(
    adjustments: Sequence[InvoiceAdjustment], invoice: Invoice, words: Words
) -> PageTable:
    """As they change what is to pay: an amount in the payer's favour has a minus sign."""
    columns: dict[str, Callable[[InvoiceAdjustment], str]] = {
        "date": lambda one: tell_day(one.booked_at, invoice.time_zone, words),
        "kind": lambda one: words.adjustment(one.kind),
        "department": lambda one: one.department or "",
        "reason": lambda one: one.reason,
        "reference": lambda one: one.reference,
    }
    cells = align_amounts([_negative(one.amount) for one in adjustments], invoice.currency)
    rows = [
        [*(Cell(tell(one)) for tell in columns.values()), cell]
        for one, cell in zip(adjustments, cells, strict=True)
    ]
    short = {"date", "kind"}
    labels = [Column(words.say(word), "short" if word in short else "text") for word in columns]
    return PageTable(
        words.say("adjustments"),
        [*labels, Column(words.say("amount"), "number")],
        [Group(None, None, rows)],
    )


def _negative(amount: str) -> str:
    return write_decimal(-read_decimal(amount))
