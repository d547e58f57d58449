"""Price books are read exactly, and whatever is wrong is named with its line."""

import json
from pathlib import Path

import pytest

from steelyard.pricing.price_book import (
    canonical_bytes,
    publishable_version,
    read_canonical,
    version_in_force,
)
from steelyard.pricing.price_book_yaml import PriceBookMalformed, read_price_book
from steelyard.timestamp import read_timestamp

REPOSITORY = Path(__file__).parents[2]
GOOD = """\
schema: steelyard.price-book/v1
name: good
currency: USD
effective_from: 2026-11-01T00:00:00Z
models:
  - match: "gpt-*"
    prices:
      input.text: { amount: 2.5, per: 1M }
  - match: gpt-4o
    source: an example
    prices:
      input.text: { amount: 0.000000546875, per: 1 }
      output.text: { amount: "10", per: 1_000_000 }
"""


def test_amounts_are_read_without_floats() -> None:
    book = read_price_book(GOOD)

    prices = book.prices_of("gpt-4o")

    assert prices is not None
    assert prices.meters["input.text"].picos_per_unit(size=1) == 546_875
    assert prices.meters["output.text"].picos_per_unit(size=1) == 10_000_000


def test_an_exact_name_goes_before_a_pattern() -> None:
    book = read_price_book(GOOD)

    matched = [prices.match for name in ("gpt-4o", "gpt-5") if (prices := book.prices_of(name))]

    assert matched == ["gpt-4o", "gpt-*"]
    assert book.prices_of("claude") is None


def test_the_canonical_bytes_read_back_to_the_same_book() -> None:
    book = read_price_book(GOOD)

    version = publishable_version(book)

    again = read_canonical(json.loads(canonical_bytes(book)))
    assert publishable_version(again).sha256 == version.sha256


def test_comments_and_order_of_keys_do_not_change_the_hash() -> None:
    reordered = GOOD.replace("name: good\ncurrency: USD", "currency: USD # dollars\nname: good")

    hashes = {publishable_version(read_price_book(text)).sha256 for text in (GOOD, reordered)}

    assert len(hashes) == 1


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("price_books/*.yaml")), ids=lambda p: p.name
)
def test_every_shipped_price_book_is_good(path: Path) -> None:
    assert read_price_book(path.read_text()).models


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("name: good\n", "", "'name' is missing"),
        ("name: good", "name: Good Book", "line 2"),
        ("currency: USD", "currency: usd", "line 3"),
        ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00", "line 4.*time zone"),
        ("2026-11-01T00:00:00Z", "tomorrow", "line 4"),
        ("2.5, per: 1M", "-2.5, per: 1M", "line 8.*not negative"),
        ("2.5, per: 1M", "1e3, per: 1M", "line 8.*plain decimal"),
        ("2.5, per: 1M", "2.5, per: 0", "line 8.*positive whole number"),
        ("2.5, per: 1M", "2.5, per: 1.5", "line 8.*positive whole number"),
        ("2.5, per: 1M", "2.5", "line 8.*'per' is missing"),
        ("2.5, per: 1M", "0.0000001, per: 1M", "line 8.*finer"),
        ("input.text: { amount: 2.5", "input.txt: { amount: 2.5", "line 8.*unknown meter"),
        ("source: an example", "sauce: an example", "line 10.*unknown key"),
        ("source: an example", "match: again", "line 10.*twice"),
        ("2.5, per: 1M", "2.5, per: 1M, tiers: [{above: 0, amount: 3}]", "line 8.*positive whole"),
        ("2.5, per: 1M", "2.5, per: 1M, tiers: [{above: 9}]", "line 8.*'amount' is missing"),
        (
            "2.5, per: 1M",
            "2.5, per: 1M, tiers: [{above: 9, amount: 3}, {above: 9, amount: 4}]",
            "line 8.*order",
        ),
        ("steelyard.price-book/v1", "steelyard.price-book/v9", "line 1"),
    ],
)
def test_a_malformed_book_is_refused_with_the_line(old: str, new: str, complaint: str) -> None:
    assert old in GOOD

    with pytest.raises(PriceBookMalformed, match=f"(?s){complaint}"):
        read_price_book(GOOD.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "models: [", "- a\n- b", "models: {}"])
def test_what_is_no_book_at_all_is_refused(text: str) -> None:
    with pytest.raises(PriceBookMalformed):
        read_price_book(text)


def test_the_version_in_force_changes_exactly_at_its_date() -> None:
    first = publishable_version(read_price_book(GOOD))
    later = GOOD.replace("name: good", "name: later").replace("2026-11-01", "2026-12-01")
    second = publishable_version(read_price_book(later))
    versions = [first, second]

    last_moment = version_in_force(versions, at=read_timestamp("2026-11-30T23:59:59.999999Z"))
    first_moment = version_in_force(versions, at=read_timestamp("2026-12-01T00:00:00Z"))

    assert (last_moment, first_moment) == (first, second)
    assert version_in_force(versions, at=read_timestamp("2026-10-31T23:59:59Z")) is None
