"""Rating: usage times prices gives a charge. Exact, pure, and the same for ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steelyard.metering.usage import ITEM, Usage
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import ModelPrices, PriceNotFound

# The line that lifts a cheap request to the least that a request costs. It counts nothing.
MINIMUM = "minimum"


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """One meter's part of a charge."""

    meter: str
    count: int
    picos_per_unit: int

    @property
    def picos(self) -> int:
        return self.count * self.picos_per_unit


@dataclass(frozen=True, slots=True)
class Charge:
    """What a usage costs, line by line."""

    lines: Sequence[ChargeLine]
    currency: Currency

    @property
    def total(self) -> Money:
        return Money(sum(line.picos for line in self.lines), self.currency)


def rate_usage(usage: Usage, *, prices: ModelPrices, currency: Currency) -> Charge:
    """Price every meter that was used, by the prices of a moment; an unpriced meter refuses, it is
    never free."""
    if not usage.counts:
        return Charge((), currency)
    sizes = _Sizes(usage.input_tokens, usage.count(ITEM))
    lines: list[ChargeLine] = []
    borne: dict[str, int] = {}
    for meter, count in sorted(usage.counts.items()):
        bearer = prices.bearer_of(meter)
        if bearer is None:
            raise PriceNotFound(f"the prices for {prices.match!r} do not name the meter {meter!r}")
        borne[bearer] = borne.get(bearer, 0) + count
        if bearer in prices.meters:
            lines.append(_line(meter, count, bearer, sizes=sizes, prices=prices))
    for meter, formula in sorted(prices.equivalent_tokens.items()):
        count = formula.evaluate(borne)
        if count:
            lines.append(_line(meter, count, meter, sizes=sizes, prices=prices))
    gap = (prices.minimum or 0) - sum(line.picos for line in lines)
    if gap > 0:
        lines.append(ChargeLine(MINIMUM, 1, gap))
    return Charge(tuple(lines), currency)


class _Sizes(NamedTuple):
    """What tiers of prices are told apart by."""

    input_tokens: int
    items: int


def _line(meter: str, count: int, bearer: str, *, sizes: _Sizes, prices: ModelPrices) -> ChargeLine:
    price = prices.meters[bearer]
    size = sizes.items if bearer == ITEM else sizes.input_tokens
    return ChargeLine(meter, count, price.picos_per_unit(size=size))
