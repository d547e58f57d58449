"""Looks over a price book for what is allowed and probably not meant."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from steelyard.metering.usage import (
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
    OUTPUT_TEXT,
)
from steelyard.pricing.price import Price
from steelyard.pricing.price_book import PATTERN_SIGNS, ModelPrices, PriceBook

# A price that becomes this many times dearer or cheaper is more often a slip than a decision.
LARGE_CHANGE: Final = 5


@dataclass(frozen=True, slots=True)
class BookWarning:
    """Something to look at: a stable code, the entry, and what is odd."""

    code: str
    model: str
    text: str


def lint_book(book: PriceBook, *, now: datetime, current: PriceBook | None) -> list[BookWarning]:
    """Every warning, in the order of the entries; `current` is the book in force."""
    warnings = [warning for entry in book.models for warning in _lint_entry(entry)]
    warnings += _shadowed(book)
    if book.effective_from < now:
        text = "its effective date is in the past: it would apply at once"
        warnings.append(BookWarning("date_in_the_past", "", text))
    if current:
        warnings += _large_changes(current, book)
    return warnings


def _lint_entry(entry: ModelPrices) -> Iterator[BookWarning]:
    if entry.bearer_of(INPUT_TEXT) and not entry.bearer_of(OUTPUT_TEXT):
        text = f"no price for {OUTPUT_TEXT}: requests for text are refused"
        yield BookWarning("no_output_price", entry.match, text)
    for meter, price in entry.meters.items():
        if any(not picos for picos in price.all_picos()):
            yield BookWarning("zero_price", entry.match, f"{meter} is free, at least at times")
        for stated in (price, *price.windows):
            amounts = [stated.picos, *(tier.picos for tier in stated.tiers)]
            if amounts != sorted(amounts):
                text = f"{meter} becomes cheaper with a longer prompt"
                yield BookWarning("tiers_fall", entry.match, text)
    fresh, cached = (entry.meters.get(m) for m in (INPUT_TEXT, INPUT_TEXT_CACHE_READ))
    if fresh and cached and _unit(cached) > _unit(fresh):
        text = "a cached token is dearer than a fresh one"
        yield BookWarning("cached_dearer", entry.match, text)
    if INPUT_TEXT_CACHE_WRITE in entry.meters and INPUT_TEXT_CACHE_WRITE_1H not in entry.meters:
        text = f"{INPUT_TEXT_CACHE_WRITE_1H} has no price, so it costs what {INPUT_TEXT} does"
        yield BookWarning("hourly_write_unpriced", entry.match, text)


def _shadowed(book: PriceBook) -> Iterator[BookWarning]:
    """Entries that never count, because an earlier one fits all that they fit."""
    patterns: list[str] = []
    seen: set[str] = set()
    for entry in book.models:
        if entry.match in seen:
            text = "an earlier entry has the same match, so this one never counts"
            yield BookWarning("shadowed", entry.match, text)
        elif PATTERN_SIGNS & set(entry.match):
            owner = next((p for p in patterns if fnmatch.fnmatchcase(entry.match, p)), None)
            if owner is not None:
                text = f"{owner!r} stands before it and fits the same names, so it never counts"
                yield BookWarning("shadowed", entry.match, text)
            patterns.append(entry.match)
        seen.add(entry.match)


def _large_changes(old: PriceBook, new: PriceBook) -> Iterator[BookWarning]:
    before = {entry.match: entry for entry in reversed(old.models)}
    for entry in new.models:
        known = before.get(entry.match)
        for meter in sorted(entry.meters.keys() & known.meters.keys()) if known else ():
            assert known is not None, "only a known entry has meters to compare"
            was, becomes = _unit(known.meters[meter]), _unit(entry.meters[meter])
            if max(was, becomes) >= LARGE_CHANGE * min(was, becomes) and was != becomes:
                text = f"{meter} goes from {was} to {becomes} picos a unit"
                yield BookWarning("large_change", entry.match, text)


def _unit(price: Price) -> int:
    return price.picos // price.per
