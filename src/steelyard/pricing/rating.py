"""Rating: usage times prices gives a charge. Exact, pure, and the same for ever."""

from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.metering.usage import Usage
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import ModelPrices, PriceNotFound


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
    """Price every meter that was used; an unpriced meter refuses, it is never free."""
    lines: list[ChargeLine] = []
    for meter, count in sorted(usage.counts.items()):
        price = prices.price_of(meter)
        if price is None:
            raise PriceNotFound(f"the prices for {prices.match!r} do not name the meter {meter!r}")
        picos_per_unit = price.picos_per_unit(input_tokens=usage.input_tokens)
        lines.append(ChargeLine(meter, count, picos_per_unit))
    return Charge(tuple(lines), currency)
