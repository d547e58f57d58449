"""A price book: what each meter of each model costs, from a date on. Immutable once published."""

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import rfc8785

from steelyard.errors import Refusal
from steelyard.metering.usage import Fold
from steelyard.money import Currency, read_decimal, write_decimal
from steelyard.pricing.formula import Formula, read_formula
from steelyard.pricing.price import Price, Tier, Window
from steelyard.timestamp import read_timestamp, write_timestamp

SCHEMA: Final = "steelyard.price-book/v1"
BATCH_FIELDS: Final = ("prices", "minimum", "adjusted_percent")
RATES_REMEMBERED_MAX: Final = 1_000
# Meters with what a unit of each costs, in picos.
FlatRates = tuple[tuple[str, int], ...]
PATTERN_SIGNS: Final = frozenset("*?[")
# What `canonical_document` writes: plain JSON values, amounts as decimal strings.
CanonicalDocument = Mapping[str, Any]


class PriceNotFound(Refusal):
    """No published price covers this model, so it is not served."""

    code = "price_not_found"


_NO_FORMULAS: Final[Mapping[str, Formula]] = MappingProxyType({})


class _FamilyPrices(NamedTuple):
    """The prices of a meter and of its parts, and the dearest where the size decides nothing."""

    bearer: str | None
    prices: Sequence[Price]
    rate: int | None


@dataclass(frozen=True, slots=True)
class ModelPrices:
    """The prices of the models whose name matches a pattern.

    `adjusted_percent` is for show: it is in the amounts already.
    """

    match: str
    meters: Mapping[str, Price]
    source: str | None = None
    equivalent_tokens: Mapping[str, Formula] = field(default_factory=lambda: _NO_FORMULAS)
    minimum: int | None = None
    adjusted_percent: str | None = None
    # What the same work costs as a line of a batch, where that has prices of its own.
    batch: "ModelPrices | None" = None
    _has_windows: bool = field(init=False, compare=False, repr=False)
    # What `bearer_of` has said before.
    _bearers: dict[str, str | None] = field(
        default_factory=dict[str, str | None], init=False, compare=False, repr=False
    )

    # What usage is charged as, by its meters; kept by whoever folds it.
    folds: dict[tuple[str, ...], Fold] = field(
        default_factory=dict[tuple[str, ...], Fold], init=False, compare=False, repr=False
    )
    # What `flat_rates` has said before.
    _flat_rates: dict[tuple[str, ...], "FlatRates | None"] = field(
        default_factory=dict[tuple[str, ...], "FlatRates | None"],
        init=False,
        compare=False,
        repr=False,
    )
    # What `dearest_of` has found before.
    _families: "dict[str, _FamilyPrices]" = field(
        default_factory=lambda: dict[str, _FamilyPrices](), init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        has_windows = any(price.windows for price in self.meters.values())
        object.__setattr__(self, "_has_windows", has_windows)

    def dearest_of(self, family: str, *, size_max: int) -> int | None:
        """The most picos that a unit of a meter, or of one that is a part of it, can cost in a
        request of up to this size; None where nothing bears it. What only a formula counts has no
        price of its own."""
        found = self._families.get(family)
        if found is None:
            found = self._families[family] = self._find_family(family)
        bearer, prices, rate = found
        if rate is not None or bearer is None:
            return rate
        return max(price.highest_picos_per_unit(size_max=size_max) for price in prices)

    def flat_rates(self, meters: tuple[str, ...]) -> "FlatRates | None":
        """Picos per unit of each of these meters, in the order of their names; None where more than
        that decides what they cost: a size, a formula, a minimum, or that something is not priced.
        """
        try:
            return self._flat_rates[meters]
        except KeyError:
            found = self._find_flat_rates(meters)
            if len(self._flat_rates) < RATES_REMEMBERED_MAX:
                self._flat_rates[meters] = found
            return found

    def _find_flat_rates(self, meters: tuple[str, ...]) -> "FlatRates | None":
        if self.equivalent_tokens or self.minimum is not None:
            return None
        rates: list[tuple[str, int]] = []
        for meter in sorted(meters):
            bearer = self.bearer_of(meter)
            if bearer is None or self.meters[bearer].tiers:
                return None
            rates.append((meter, self.meters[bearer].picos_per_unit(size=0)))
        return tuple(rates)

    def _find_family(self, family: str) -> "_FamilyPrices":
        bearer = self.bearer_of(family)
        prices = [
            price
            for meter, price in self.meters.items()
            if meter == bearer or meter.startswith(f"{family}.")
        ]
        if bearer is None or any(price.tiers for price in prices):
            return _FamilyPrices(bearer, prices, None)
        rates = (price.highest_picos_per_unit(size_max=0) for price in prices)
        return _FamilyPrices(bearer, prices, max(rates, default=0))

    def chosen(self, *, is_batch: bool) -> "ModelPrices":
        """The prices of a request, or of a line of a batch."""
        return self.batch or self if is_batch else self

    def at(self, moment: datetime) -> "ModelPrices":
        """The prices of a moment: no windows are left in them."""
        if not self._has_windows:
            return self
        return replace(self, meters={name: p.at(moment) for name, p in self.meters.items()})

    def __contains__(self, meter: str) -> bool:
        """Whether something bears a meter."""
        try:
            return self._bearers[meter] is not None
        except KeyError:
            return self.bearer_of(meter) is not None

    def bearer_of(self, meter: str) -> str | None:
        """The name in prices or formulas that bears a meter: its own, or else that of the meter it
        is a part of. A cached token without a price costs as much as any other token."""
        try:
            return self._bearers[meter]
        except KeyError:
            bearer = self._bearers[meter] = self._find_bearer(meter)
            return bearer

    def _find_bearer(self, meter: str) -> str | None:
        while not self._names(meter):
            if "." not in meter:
                return None
            meter = meter.rpartition(".")[0]
        return meter

    def _names(self, meter: str) -> bool:
        if meter in self.meters or not self.equivalent_tokens:
            return meter in self.meters
        return any(meter in formula.meters for formula in self.equivalent_tokens.values())


@dataclass(frozen=True, slots=True)
class AppliesTo:
    """Whose prices a book has: everybody's, those on a plan, or one organisation's."""

    kind: Literal["list", "plan", "organisation"]
    name: str = ""


LIST: Final = AppliesTo("list")


@dataclass(frozen=True, slots=True)
class BaseBook:
    """The published book that a book was made from, for show: amounts are explicit."""

    sha256: str
    name: str
    percent: str | None


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A named set of prices in one currency, in force from a moment on."""

    name: str
    currency: Currency
    effective_from: datetime
    models: Sequence[ModelPrices]
    applies_to: AppliesTo = LIST
    base: BaseBook | None = None

    def prices_of(self, model: str) -> ModelPrices | None:
        """The first entry that matches; an exact name goes before any pattern."""
        exact = (entry for entry in self.models if entry.match == model)
        # Only patterns are compiled: a large book has thousands of plain names.
        patterns = (entry for entry in self.models if not PATTERN_SIGNS.isdisjoint(entry.match))
        fitting = (entry for entry in patterns if fnmatch.fnmatchcase(model, entry.match))
        return next(exact, None) or next(fitting, None)


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A published price book, addressed by the hash of its canonical bytes."""

    sha256: str
    book: PriceBook


def canonical_document(book: PriceBook) -> dict[str, Any]:
    """The book as plain JSON values; amounts are decimal strings. What a book does not use is not
    in it, so that a new feature changes no old hash."""
    document: dict[str, Any] = {
        "currency": book.currency,
        "effective_from": write_timestamp(book.effective_from),
        "models": [_entry_document(entry) for entry in book.models],
        "name": book.name,
        "schema": SCHEMA,
    }
    if book.applies_to != LIST:
        document["applies_to"] = {book.applies_to.kind: book.applies_to.name}
    if book.base:
        percent = {"percent": book.base.percent} if book.base.percent else {}
        document["base"] = {"name": book.base.name, "sha256": book.base.sha256, **percent}
    return document


def _entry_document(entry: ModelPrices) -> dict[str, Any]:
    document: dict[str, Any] = {
        "match": entry.match,
        "prices": {meter: price.as_document() for meter, price in entry.meters.items()},
    }
    if entry.source:
        document["source"] = entry.source
    if entry.equivalent_tokens:
        document["equivalent_tokens"] = {
            meter: formula.text for meter, formula in entry.equivalent_tokens.items()
        }
    if entry.minimum is not None:
        document["minimum"] = write_decimal(entry.minimum)
    if entry.adjusted_percent is not None:
        document["adjusted_percent"] = entry.adjusted_percent
    if entry.batch is not None:
        listed = _entry_document(entry.batch)
        document["batch"] = {name: listed[name] for name in BATCH_FIELDS if name in listed}
    return document


def canonical_bytes(book: PriceBook) -> bytes:
    """RFC 8785 canonical JSON: the same prices always give the same bytes."""
    return rfc8785.dumps(canonical_document(book))


def publishable_version(book: PriceBook) -> PriceVersion:
    """Name a book by the hash of its bytes."""
    return PriceVersion(hashlib.sha256(canonical_bytes(book)).hexdigest(), book)


def version_in_force(
    versions: Sequence[PriceVersion],
    *,
    at: datetime,
    applies_to: AppliesTo = LIST,
    currency: Currency | None = None,
) -> PriceVersion | None:
    """The version for these tenants with the latest effective date that is not in the future.

    `versions` are in the order of their publication: of two with the same date the later counts.
    """
    current: PriceVersion | None = None
    for version in versions:
        book = version.book
        if book.applies_to != applies_to or (currency and book.currency != currency):
            continue
        starts = book.effective_from
        if starts <= at and (current is None or starts >= current.book.effective_from):
            current = version
    return current


def versions_in_force(versions: Sequence[PriceVersion], *, at: datetime) -> Iterator[PriceVersion]:
    """Every version that is in force for somebody."""
    kinds = {(version.book.applies_to, version.book.currency) for version in versions}
    for applies_to, currency in kinds:
        version = version_in_force(versions, at=at, applies_to=applies_to, currency=currency)
        if version:
            yield version


def read_canonical(document: dict[str, Any]) -> PriceBook:
    """The book that `canonical_document` wrote."""
    return PriceBook(
        name=document["name"],
        currency=Currency(document["currency"]),
        effective_from=read_timestamp(document["effective_from"]),
        models=tuple(_read_entry(entry) for entry in document["models"]),
        applies_to=_read_applies_to(document.get("applies_to")),
        base=_read_base(document.get("base")),
    )


def _read_applies_to(document: Mapping[str, str] | None) -> AppliesTo:
    match document:
        case {"plan": name}:
            return AppliesTo("plan", name)
        case {"organisation": name}:
            return AppliesTo("organisation", name)
        case _:
            return LIST


def _read_base(document: Mapping[str, str] | None) -> BaseBook | None:
    if document is None:
        return None
    return BaseBook(document["sha256"], document["name"], document.get("percent"))


def _read_entry(entry: Mapping[str, Any]) -> ModelPrices:
    formulas: Mapping[str, str] = entry.get("equivalent_tokens", {})
    return ModelPrices(
        match=entry["match"],
        meters={meter: _read_price(price) for meter, price in entry["prices"].items()},
        source=entry.get("source"),
        equivalent_tokens={meter: read_formula(text) for meter, text in formulas.items()},
        minimum=read_decimal(entry["minimum"]) if "minimum" in entry else None,
        adjusted_percent=entry.get("adjusted_percent"),
        batch=_read_entry(_batch_document(entry)) if "batch" in entry else None,
    )


def _batch_document(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with what a batch costs in the place of its own prices."""
    kept = {name: entry[name] for name in entry if name not in {*BATCH_FIELDS, "batch", "source"}}
    return {**kept, **entry["batch"]}


def _read_price(document: Mapping[str, Any]) -> Price:
    windows = tuple(_read_window(window) for window in document.get("windows", ()))
    picos = read_decimal(document["amount"])
    return Price(picos, document["per"], _read_tiers(document), windows)


def _read_window(document: Mapping[str, Any]) -> Window:
    return Window(
        opens=time.fromisoformat(document["from"]),
        closes=time.fromisoformat(document["to"]),
        time_zone=document["time_zone"],
        days=tuple(document.get("days", ())),
        picos=read_decimal(document["amount"]),
        tiers=_read_tiers(document),
    )


def _read_tiers(document: Mapping[str, Any]) -> tuple[Tier, ...]:
    return tuple(
        Tier(tier["above"], read_decimal(tier["amount"])) for tier in document.get("tiers", ())
    )
