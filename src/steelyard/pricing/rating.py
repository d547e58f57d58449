"""Rating: usage times prices gives a charge. Exact, pure, and the same for ever."""

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.metering.usage import ITEM, Usage
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import FlatRates, ModelPrices, PriceNotFound

# The line that lifts a cheap request to the least that a request costs. It counts nothing.
MINIMUM = "minimum"


class ChargeLine(msgspec.Struct, frozen=True):
    """One meter's part of a charge."""

    meter: str
    count: int
    picos_per_unit: int

    @property
    def picos(self) -> int:
        return self.count * self.picos_per_unit


class Charge(msgspec.Struct, frozen=True):
    """What a usage costs, line by line; the total is the sum of the lines."""

    lines: Sequence[ChargeLine]
    total: Money


def rate_usage(usage: Usage, *, prices: ModelPrices, currency: Currency) -> Charge:
    """Price every meter that was used, by the prices of a moment; an unpriced meter refuses, it is
    never free."""
    counts = usage.counts
    if not counts:
        return Charge((), Money(0, currency))
    flat_rates = prices.flat_rates(tuple(counts))
    if flat_rates is not None:
        return _charge_flat(counts, flat_rates, currency)
    lines: list[ChargeLine] = []
    borne: dict[str, int] = {}
    for meter, count in sorted(usage.counts.items()):
        bearer = prices.bearer_of(meter)
        if bearer is None:
            raise PriceNotFound(f"the prices for {prices.match!r} do not name the meter {meter!r}")
        borne[bearer] = borne.get(bearer, 0) + count
        if bearer in prices.meters:
            lines.append(_line(meter, count, bearer, usage=usage, prices=prices))
    for meter, formula in sorted(prices.equivalent_tokens.items()):
        count = formula.evaluate(borne)
        if count:
            lines.append(_line(meter, count, meter, usage=usage, prices=prices))
    picos = sum(line.count * line.picos_per_unit for line in lines)
    if prices.minimum is not None and picos < prices.minimum:
        lines.append(ChargeLine(MINIMUM, 1, prices.minimum - picos))
        picos = prices.minimum
    return Charge(tuple(lines), Money(picos, currency))


def _charge_flat(counts: Mapping[str, int], rates: FlatRates, currency: Currency) -> Charge:
    lines: list[ChargeLine] = []
    total = 0
    for meter, picos in rates:
        count = counts[meter]
        total += count * picos
        lines.append(ChargeLine(meter, count, picos))
    return Charge(tuple(lines), Money(total, currency))


def _line(meter: str, count: int, bearer: str, *, usage: Usage, prices: ModelPrices) -> ChargeLine:
    price = prices.meters[bearer]
    if not price.tiers:
        return ChargeLine(meter, count, price.picos_per_unit(size=0))
    size = usage.count(ITEM) if bearer == ITEM else usage.input_tokens
    return ChargeLine(meter, count, price.picos_per_unit(size=size))
