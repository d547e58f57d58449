"""What an import from a public price list gives: a book, and everything that is not in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from fractions import Fraction

from steelyard.money import PICOS_PER_UNIT
from steelyard.pricing.price_book import ModelPrices, PriceBook

# Beyond this an amount is a slip or an attack, and its exact fraction would fill the memory.
EXPONENT_MAX = 30


class NotExact(Exception):
    """A price cannot be said in whole picos a unit."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An entry of the list that is not in the book, and why."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class LaterPrice:
    """A model whose price changes on a day after the book begins: a book to publish later."""

    model: str
    starts: date


@dataclass(frozen=True, slots=True)
class UnsupportedField:
    """A field of the list that we have no meter for; the model's other prices are in the book."""

    model: str
    name: str


@dataclass(slots=True)
class ImportFindings:
    """Everything that was found and is not in the book."""

    left_out: list[LeftOut] = field(default_factory=list[LeftOut])
    later: list[LaterPrice] = field(default_factory=list[LaterPrice])
    unsupported: list[UnsupportedField] = field(default_factory=list[UnsupportedField])

    def unsupported_counts(self) -> dict[str, int]:
        """How many models have each field."""
        counts = Counter(found.name for found in self.unsupported)
        return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class ImportedBook:
    book: PriceBook
    findings: ImportFindings


def picos_of(amount: Decimal, *, per: int) -> int:
    """The picos of `per` units at this amount; raises NotExact unless one unit is whole picos."""
    is_sane = amount.is_finite() and amount >= 0 and abs(amount.adjusted()) <= EXPONENT_MAX
    if not is_sane:
        raise NotExact(f"{amount} is no price")
    exact = Fraction(amount) * PICOS_PER_UNIT
    if exact.denominator != 1 or exact.numerator % per:
        raise NotExact(f"{amount:f} per {per} is finer than a pico a unit")
    return exact.numerator


def first_of_each_match(
    entries: Sequence[ModelPrices], findings: ImportFindings
) -> tuple[ModelPrices, ...]:
    """Of entries with the same match the first counts; the others are named."""
    kept: dict[str, ModelPrices] = {}
    for entry in entries:
        first = kept.setdefault(entry.match, entry)
        if first is not entry:
            reason = f"{entry.match!r} is priced by {first.source} already"
            findings.left_out.append(LeftOut(entry.source or entry.match, reason))
    return tuple(kept.values())
