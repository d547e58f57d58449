"""Importing, comparing and looking over price books, and writing them as text."""

import json
from datetime import UTC, datetime

import pytest

from steelyard.money import Currency
from steelyard.pricing.book_difference import compare_books
from steelyard.pricing.book_lint import lint_book
from steelyard.pricing.imported_book import ImportedBook
from steelyard.pricing.litellm_import import PriceListMalformed, import_litellm
from steelyard.pricing.price_book import PriceBook, canonical_bytes
from steelyard.pricing.price_book_text import write_price_book
from steelyard.pricing.price_book_yaml import read_price_book
from tests.unit.test_price_features import EXAMPLES, HEAD

NOW = datetime(2026, 11, 24, tzinfo=UTC)
EMPTY = PriceBook("list", Currency("USD"), NOW, ())


def _litellm(**models: object) -> ImportedBook:
    return import_litellm(json.dumps(models), book=EMPTY)


def _book(entries: str) -> PriceBook:
    return read_price_book(HEAD.format(name="new") + "models:\n" + entries)


def test_litellms_floats_are_read_as_the_decimals_they_are_written_as() -> None:
    text = '{"m": {"input_cost_per_token": 5.46875e-07, "output_cost_per_token": 0.0}}'

    book = import_litellm(text, book=EMPTY).book

    prices = {meter: price.picos // price.per for meter, price in book.models[0].meters.items()}
    assert prices == {"input.text": 546_875, "output.text": 0}


def test_litellms_suffixes_are_tiers() -> None:
    imported = _litellm(
        m={"input_cost_per_token": 1e-06, "input_cost_per_token_above_200k_tokens": 2e-06}
    )

    price = imported.book.models[0].meters["input.text"]
    assert price.picos_per_unit(size=200_000) == 1_000_000
    assert price.picos_per_unit(size=200_001) == 2_000_000


def test_what_litellm_says_and_we_cannot_is_named_and_counted() -> None:
    imported = _litellm(
        sample_spec={"input_cost_per_token": 1},
        m={"input_cost_per_token": 1e-06, "input_cost_per_token_batches": 5e-07},
        n={"input_cost_per_token": 1e-06, "input_cost_per_token_batches": 5e-07},
        fine={"input_cost_per_token": 1e-13},
        huge={"input_cost_per_token": "1e999999999"},
        odd={"input_cost_per_token": "much"},
        nothing={"mode": "chat"},
    )

    findings = imported.findings
    assert [entry.match for entry in imported.book.models] == ["m", "n"]
    assert findings.unsupported_counts() == {"input_cost_per_token_batches": 2}
    assert {found.model: found.reason for found in findings.left_out} == {
        "fine": "0.0000000000001 per 1 is finer than a pico a unit",
        "huge": "1E+999999999 is no price",
        "odd": "'much' is no price",
        "nothing": "none of its prices has a meter here",
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"m": 5}', "[" * 100_000])
def test_what_is_no_map_of_models_is_refused(text: str) -> None:
    with pytest.raises(PriceListMalformed):
        import_litellm(text, book=EMPTY)


@pytest.mark.parametrize("example", [text for text in EXAMPLES if "extends:" not in text])
def test_a_book_that_is_written_reads_back_the_same(example: str) -> None:
    book = read_price_book(example)

    again = read_price_book(write_price_book(book))

    assert canonical_bytes(again) == canonical_bytes(book)


def test_a_name_that_yaml_would_take_for_something_else_is_written_safely() -> None:
    for match in ("1.5", "no", "null", "a: b", "x # y", "[ab]*", "über", "-", 'say "hi"', ""):
        book = read_price_book(
            HEAD.format(name="new")
            + f"models:\n  - match: {json.dumps(match)}\n"
            + "    prices: { input.text: { amount: 1, per: 1M } }\n"
        )

        assert read_price_book(write_price_book(book)).models[0].match == match


def test_a_difference_says_what_comes_goes_and_changes() -> None:
    old = _book(
        "  - match: a\n    prices: { input.text: { amount: 1, per: 1M } }\n"
        "  - match: b\n    prices: { input.text: { amount: 0.001, per: 1k } }\n"
        "  - match: c\n    prices: { input.text: { amount: 1, per: 1M } }\n"
    )
    new = _book(
        "  - match: d\n    prices: { input.text: { amount: 1, per: 1M } }\n"
        "  - match: b\n    prices: { input.text: { amount: 1, per: 1M } }\n"
        "  - match: c\n    minimum: 1\n    prices: { input.text: { amount: 2, per: 1M,"
        " tiers: [{above: 5, amount: 3}] } }\n"
    )

    difference = compare_books(old, new)

    assert (difference.added, difference.removed) == (("d",), ("a",))
    assert difference.unchanged_count == 1
    assert [(c.meter, c.old, c.new) for c in difference.changed] == [
        ("input.text", "1 per 1M", "2 per 1M, above 5: 3"),
        ("minimum", None, "1"),
    ]
    assert compare_books(None, new).added == ("b", "c", "d")
    assert compare_books(new, new).is_empty


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ("  - match: m\n    prices: { input.text: { amount: 1, per: 1 } }\n", "no_output_price"),
        ("  - match: m\n    prices: { output.text: { amount: 0, per: 1 } }\n", "zero_price"),
        (
            (
                "  - match: m\n    prices: { output.text: { amount: 2, per: 1,"
                " tiers: [{above: 9, amount: 1}] } }\n"
            ),
            "tiers_fall",
        ),
        (
            (
                "  - match: m\n    prices: { input.text: { amount: 1, per: 1 },"
                " input.text.cache_read: { amount: 2, per: 1 }, output.text: { amount: 1, per: 1 } }\n"
            ),
            "cached_dearer",
        ),
        (
            (
                "  - match: m\n    prices: { input.text: { amount: 1, per: 1 },"
                " input.text.cache_write: { amount: 2, per: 1 }, output.text: { amount: 1, per: 1 } }\n"
            ),
            "hourly_write_unpriced",
        ),
        (
            (
                '  - match: "m*"\n    prices: { call: { amount: 1, per: 1 } }\n'
                '  - match: "mm*"\n    prices: { call: { amount: 1, per: 1 } }\n'
            ),
            "shadowed",
        ),
        (
            (
                "  - match: m\n    prices: { call: { amount: 1, per: 1 } }\n"
                "  - match: m\n    prices: { call: { amount: 1, per: 1 } }\n"
            ),
            "shadowed",
        ),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(entries: str, code: str) -> None:
    book = _book(entries)

    warnings = lint_book(book, now=book.effective_from, current=None)

    assert [warning.code for warning in warnings] == [code]


def test_a_book_without_a_fault_has_no_warning() -> None:
    book = _book(
        "  - match: m\n    prices: { input.text: { amount: 1, per: 1 },"
        " output.text: { amount: 1, per: 1 } }\n"
    )

    assert lint_book(book, now=book.effective_from, current=book) == []
    late = lint_book(book, now=NOW, current=None)
    assert [warning.code for warning in late] == ["date_in_the_past"]


@pytest.mark.parametrize(("amount", "is_large"), [("4", False), ("5", True), ("0.2", True)])
def test_a_large_change_is_warned_of(amount: str, *, is_large: bool) -> None:
    old = _book("  - match: m\n    prices: { call: { amount: 1, per: 1 } }\n")
    new = _book(f"  - match: m\n    prices: {{ call: {{ amount: {amount}, per: 1 }} }}\n")

    warnings = lint_book(new, now=new.effective_from, current=old)

    assert [warning.code for warning in warnings] == (["large_change"] if is_large else [])
