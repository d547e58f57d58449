"""Markups and discounts: applied once, when a book is compiled, and rounded there once."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from steelyard.pricing.price import Price, Tier, Window
from steelyard.pricing.price_book import ModelPrices

_PERCENT = re.compile(r"(-?)([0-9]{1,5})(?:\.([0-9]{1,6}))?", re.ASCII)
PERCENT_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A percentage that is added to prices: -12.5 takes an eighth off, 20 puts a fifth on."""

    millionths: int

    @property
    def percent(self) -> str:
        """The shortest way to write it."""
        sign = "-" if self.millionths < 0 else ""
        whole, fraction = divmod(abs(self.millionths), 10**PERCENT_DIGITS)
        decimals = f"{fraction:0{PERCENT_DIGITS}d}".rstrip("0")
        return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"

    @property
    def factor(self) -> Fraction:
        return Fraction(100 * 10**PERCENT_DIGITS + self.millionths, 100 * 10**PERCENT_DIGITS)

    def apply(self, entry: ModelPrices) -> ModelPrices:
        """The entry with every amount adjusted; formulas count and are not adjusted."""
        minimum = entry.minimum
        return replace(
            entry,
            meters={meter: self._price(price) for meter, price in entry.meters.items()},
            minimum=None if minimum is None else round_half_even_to_pico(minimum * self.factor),
            adjusted_percent=self.percent,
            batch=self._batch(entry.batch) if entry.batch else None,
        )

    def batch_of(self, entry: ModelPrices) -> ModelPrices:
        """The entry with prices of its own for batches, which are the others adjusted."""
        plain = replace(entry, source=None, adjusted_percent=None, batch=None)
        return replace(entry, batch=self.apply(plain))

    def _batch(self, batch: ModelPrices) -> ModelPrices:
        """Adjusted as all else is; the percentage that is shown stays that of the batch."""
        return replace(self.apply(batch), adjusted_percent=batch.adjusted_percent)

    def _price(self, price: Price) -> Price:
        return Price(
            self._picos(price.picos, per=price.per),
            price.per,
            self._tiers(price.tiers, per=price.per),
            tuple(self._window(window, per=price.per) for window in price.windows),
        )

    def _window(self, window: Window, *, per: int) -> Window:
        picos = self._picos(window.picos, per=per)
        return replace(window, picos=picos, tiers=self._tiers(window.tiers, per=per))

    def _tiers(self, tiers: tuple[Tier, ...], *, per: int) -> tuple[Tier, ...]:
        return tuple(Tier(tier.above, self._picos(tier.picos, per=per)) for tier in tiers)

    def _picos(self, picos: int, *, per: int) -> int:
        return round_half_even_to_pico(picos // per * self.factor) * per


def round_half_even_to_pico(exact: Fraction) -> int:
    """The one rounding of a markup: of a unit's price, to a whole pico."""
    return round(exact)


def read_adjustment(text: str) -> Adjustment:
    """Read a percentage such as -12.5; raises ValueError for anything else, or below -100."""
    found = _PERCENT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a percentage; write it as -12.5")
    sign, whole, decimals = found.groups(default="")
    millionths = int(whole) * 10**PERCENT_DIGITS + int(decimals.ljust(PERCENT_DIGITS, "0"))
    adjustment = Adjustment(-millionths if sign else millionths)
    if adjustment.factor < 0:
        raise ValueError(f"{text!r} takes more off than there is; at most -100")
    return adjustment
