"""Reads a price book from YAML, and says the line of whatever is wrong with it."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import yaml

from steelyard.errors import Refusal
from steelyard.ids import NameMalformed, read_name
from steelyard.metering.usage import METERS
from steelyard.money import AmountMalformed, Currency, CurrencyUnknown, read_currency, read_decimal
from steelyard.pricing.price_book import ModelPrices, Price, PriceBook, Tier
from steelyard.timestamp import read_timestamp

SCHEMA = "steelyard.price-book/v1"
PER_NAMES = {"1": 1, "1k": 1_000, "1M": 1_000_000}


class PriceBookMalformed(Refusal):
    """The price book cannot be read."""

    code = "price_book_malformed"


@dataclass(frozen=True, slots=True)
class Place:
    """A YAML node and the words that lead to it."""

    node: yaml.Node
    path: str

    def malformed(self, complaint: str) -> PriceBookMalformed:
        line = self.node.start_mark.line + 1
        return PriceBookMalformed(f"line {line}: {self.path or 'the book'}: {complaint}")

    def fields(self, *, required: set[str], optional: set[str]) -> dict[str, "Place"]:
        """The entries of a mapping; unknown, repeated and missing keys are refused."""
        found = self.entries()
        for key in found:
            if key not in required | optional:
                known = ", ".join(sorted(required | optional))
                raise found[key].malformed(f"unknown key; the keys here are {known}")
        for key in sorted(required - found.keys()):
            raise self.malformed(f"the key '{key}' is missing")
        return found

    def entries(self) -> dict[str, "Place"]:
        if not isinstance(self.node, yaml.MappingNode):
            raise self.malformed("expected a mapping of keys to values")
        found: dict[str, Place] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", self.node.value):
            key = Place(key_node, self.path).text()
            place = Place(value_node, f"{self.path}.{key}" if self.path else key)
            if key in found:
                raise place.malformed("the key stands here twice")
            found[key] = place
        return found

    def items(self) -> list["Place"]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.malformed("expected a list")
        nodes = cast("list[yaml.Node]", self.node.value)
        return [Place(node, f"{self.path}[{i}]") for i, node in enumerate(nodes)]

    def text(self) -> str:
        """The scalar as it is written, so that no number passes through a float."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.malformed("expected a single value")
        return str(self.node.value)


def read_price_book(text: str) -> PriceBook:
    """Parse and check a price book; raises PriceBookMalformed with the line."""
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType] - its stub leaves the stream untyped
    except yaml.YAMLError as error:
        raise PriceBookMalformed(f"not YAML: {error}") from error
    if root is None:
        raise PriceBookMalformed("the file is empty")
    keys = {"schema", "name", "currency", "effective_from", "models"}
    fields = Place(root, "").fields(required=keys, optional=set())
    if fields["schema"].text() != SCHEMA:
        raise fields["schema"].malformed(f"expected {SCHEMA}")
    entries = fields["models"].items()
    if not entries:
        raise fields["models"].malformed("a book prices at least one model")
    return PriceBook(
        name=_read_name(fields["name"]),
        currency=_read_currency(fields["currency"]),
        effective_from=_read_moment(fields["effective_from"]),
        models=tuple(_read_model_prices(entry) for entry in entries),
    )


def _read_name(place: Place) -> str:
    try:
        return read_name(place.text())
    except NameMalformed as error:
        raise place.malformed(str(error)) from error


def _read_currency(place: Place) -> Currency:
    try:
        return read_currency(place.text())
    except CurrencyUnknown as error:
        raise place.malformed(str(error)) from error


def _read_moment(place: Place) -> datetime:
    try:
        return read_timestamp(place.text())
    except ValueError as error:
        raise place.malformed(f"{error}; write it as 2026-11-01T00:00:00Z") from error


def _read_model_prices(place: Place) -> ModelPrices:
    fields = place.fields(required={"match", "prices"}, optional={"source"})
    meters: dict[str, Price] = {}
    for meter, price in fields["prices"].entries().items():
        if meter not in METERS:
            raise price.malformed(f"unknown meter; the meters are {', '.join(METERS)}")
        meters[meter] = _read_price(price)
    if not meters:
        raise fields["prices"].malformed("a model has at least one price")
    source = fields["source"].text() if "source" in fields else None
    return ModelPrices(match=fields["match"].text(), meters=meters, source=source)


def _read_price(place: Place) -> Price:
    fields = place.fields(required={"amount", "per"}, optional={"tiers"})
    per = _read_per(fields["per"])
    picos = _read_amount(fields["amount"], per=per)
    return Price(picos, per, _read_tiers(fields["tiers"], per=per) if "tiers" in fields else ())


def _read_tiers(place: Place, *, per: int) -> tuple[Tier, ...]:
    tiers: list[Tier] = []
    for item in place.items():
        fields = item.fields(required={"above", "amount"}, optional=set())
        above = _read_whole(fields["above"])
        if above <= 0:
            raise fields["above"].malformed("expected a positive whole number of tokens")
        if tiers and above <= tiers[-1].above:
            raise fields["above"].malformed("tiers stand in the order of their bounds")
        tiers.append(Tier(above, _read_amount(fields["amount"], per=per)))
    return tuple(tiers)


def _read_amount(place: Place, *, per: int) -> int:
    try:
        picos = read_decimal(place.text())
    except AmountMalformed as error:
        raise place.malformed(str(error)) from error
    if picos < 0:
        raise place.malformed("a price is not negative")
    if picos % per:
        raise place.malformed("the price of one unit is finer than 10^-12; round it")
    return picos


def _read_per(place: Place) -> int:
    per = PER_NAMES.get(place.text()) or _read_whole(place)
    if per <= 0:
        raise place.malformed("expected 1, 1k, 1M or a positive whole number of units")
    return per


def _read_whole(place: Place) -> int:
    """A whole number as people write it, with underscores; zero for anything else."""
    digits = place.text().replace("_", "")
    return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else 0
