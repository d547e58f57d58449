"""A price book: what each meter of each model costs, from a date on. Immutable once published."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import rfc8785

from steelyard.errors import Refusal
from steelyard.money import Currency, read_decimal, write_decimal
from steelyard.timestamp import read_timestamp, write_timestamp


class PriceNotFound(Refusal):
    """No published price covers this model, so it is not served."""

    code = "price_not_found"


@dataclass(frozen=True, slots=True)
class Tier:
    """The amount that applies, to every unit, once the prompt has more than `above` tokens."""

    above: int
    picos: int


@dataclass(frozen=True, slots=True)
class Price:
    """What one unit of a meter costs: `picos` for every `per` units. Divides without remainder.

    Tiers are cliffs: the length of the prompt decides on one of the amounts for all units, so the
    price of a request depends on nothing but the request.
    """

    picos: int
    per: int
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        assert self.per > 0, f"a price is per a positive number of units: {self.per}"
        for picos in (self.picos, *(tier.picos for tier in self.tiers)):
            assert picos >= 0, f"a price is not negative: {picos}"
            assert picos % self.per == 0, f"{picos} picos per {self.per} is finer than a pico"
        bounds = [tier.above for tier in self.tiers]
        assert bounds == sorted(set(bounds)), f"tiers are in order of their bounds: {bounds}"
        assert min(bounds, default=1) > 0, f"a tier starts above a positive number: {bounds}"

    def picos_per_unit(self, *, input_tokens: int) -> int:
        """The price of a unit in a request whose prompt has so many tokens."""
        picos = self.picos
        for tier in self.tiers:
            if input_tokens > tier.above:
                picos = tier.picos
        return picos // self.per

    def highest_picos_per_unit(self, *, input_tokens_max: int) -> int:
        """The most that a unit can cost while the prompt may have up to so many tokens."""
        reachable = [tier.picos for tier in self.tiers if input_tokens_max > tier.above]
        return max([self.picos, *reachable]) // self.per

    def as_document(self) -> dict[str, Any]:
        """The price as plain JSON values; amounts are decimal strings."""
        document: dict[str, Any] = {"amount": write_decimal(self.picos), "per": self.per}
        if self.tiers:
            document["tiers"] = [
                {"above": tier.above, "amount": write_decimal(tier.picos)} for tier in self.tiers
            ]
        return document


@dataclass(frozen=True, slots=True)
class ModelPrices:
    """The prices of the models whose name matches a pattern."""

    match: str
    meters: Mapping[str, Price]
    source: str | None = None

    def price_of(self, meter: str) -> Price | None:
        """The meter's own price, or that of the meter it is a part of: a cached token for which
        no price is stated costs as much as any other token of the prompt."""
        while meter not in self.meters and "." in meter:
            meter = meter.rpartition(".")[0]
        return self.meters.get(meter)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A named set of prices in one currency, in force from a moment on."""

    name: str
    currency: Currency
    effective_from: datetime
    models: Sequence[ModelPrices]

    def prices_of(self, model: str) -> ModelPrices | None:
        """The first entry that matches; an exact name goes before any pattern."""
        exact = (entry for entry in self.models if entry.match == model)
        pattern = (entry for entry in self.models if fnmatch.fnmatchcase(model, entry.match))
        return next(exact, None) or next(pattern, None)


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A published price book, addressed by the hash of its canonical bytes."""

    sha256: str
    book: PriceBook


def canonical_document(book: PriceBook) -> dict[str, Any]:
    """The book as plain JSON values; amounts are decimal strings."""
    return {
        "currency": book.currency,
        "effective_from": write_timestamp(book.effective_from),
        "models": [
            {
                "match": entry.match,
                "prices": {meter: price.as_document() for meter, price in entry.meters.items()},
                **({"source": entry.source} if entry.source else {}),
            }
            for entry in book.models
        ],
        "name": book.name,
        "schema": "steelyard.price-book/v1",
    }


def canonical_bytes(book: PriceBook) -> bytes:
    """RFC 8785 canonical JSON: the same prices always give the same bytes."""
    return rfc8785.dumps(canonical_document(book))


def publishable_version(book: PriceBook) -> PriceVersion:
    """Name a book by the hash of its bytes."""
    return PriceVersion(hashlib.sha256(canonical_bytes(book)).hexdigest(), book)


def version_in_force(versions: Sequence[PriceVersion], *, at: datetime) -> PriceVersion:
    """The version with the latest effective date that is not in the future.

    `versions` are in the order of their publication: of two with the same date the later counts.
    """
    current: PriceVersion | None = None
    for version in versions:
        starts = version.book.effective_from
        if starts <= at and (current is None or starts >= current.book.effective_from):
            current = version
    if current is None:
        raise PriceNotFound(
            "no price book is in force yet; publish one with 'steelyard price publish FILE'"
        )
    return current


def read_canonical(document: dict[str, Any]) -> PriceBook:
    """The book that `canonical_document` wrote."""
    return PriceBook(
        name=document["name"],
        currency=Currency(document["currency"]),
        effective_from=read_timestamp(document["effective_from"]),
        models=tuple(
            ModelPrices(
                match=entry["match"],
                meters={meter: _read_price(price) for meter, price in entry["prices"].items()},
                source=entry.get("source"),
            )
            for entry in document["models"]
        ),
    )


def _read_price(document: dict[str, Any]) -> Price:
    tiers = (
        Tier(tier["above"], read_decimal(tier["amount"])) for tier in document.get("tiers", ())
    )
    return Price(read_decimal(document["amount"]), document["per"], tuple(tiers))
