"""The price that applies to a request now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.clock import Clock
from steelyard.gateway.snapshot import Snapshot
from steelyard.money import Currency
from steelyard.pricing.price_book import ModelPrices, PriceNotFound, PriceVersion, version_in_force


@dataclass(frozen=True, slots=True)
class PinnedPrices:
    """The prices of one model, pinned to the version they come from."""

    version: PriceVersion
    prices: ModelPrices

    @property
    def currency(self) -> Currency:
        return self.version.book.currency

    def as_document(self) -> dict[str, Any]:
        """The prices for people and clients; amounts are decimal strings."""
        return {
            "currency": self.currency,
            "price_version": self.version.sha256,
            "meters": {meter: price.as_document() for meter, price in self.prices.meters.items()},
        }


@dataclass(slots=True)
class PriceDirectory:
    """Resolves prices at admission; what it returns stays true for the whole request."""

    snapshot: Snapshot[Sequence[PriceVersion]]
    clock: Clock

    def pin(self, model: str, *, currency: Currency) -> PinnedPrices:
        """Raises PriceNotFound: what has no price is not served."""
        version = version_in_force(self.snapshot.copy, at=self.clock.now())
        if version.book.currency != currency:
            raise PriceNotFound(
                f"prices are in {version.book.currency}, but your balance is in {currency}"
            )
        prices = version.book.prices_of(model)
        if prices is None:
            raise PriceNotFound(
                f"the price book {version.book.name!r} has no price for the model {model!r}, "
                "so it is not served"
            )
        return PinnedPrices(version, prices)
