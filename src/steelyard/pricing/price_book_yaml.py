"""Reads a price book from YAML, and says the line of whatever is wrong with it.

A book that extends a published one is compiled here: what it inherits becomes its own, in explicit
amounts.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from steelyard.errors import Refusal
from steelyard.ids import NameMalformed, read_name
from steelyard.metering.usage import METERS
from steelyard.money import Currency, CurrencyUnknown, read_currency
from steelyard.pricing.adjustment import Adjustment, read_adjustment
from steelyard.pricing.formula import Formula, FormulaMalformed, read_formula
from steelyard.pricing.price import Price
from steelyard.pricing.price_book import (
    LIST,
    SCHEMA,
    AppliesTo,
    BaseBook,
    ModelPrices,
    PriceBook,
    PriceVersion,
)
from steelyard.pricing.price_yaml import read_amount, read_price
from steelyard.pricing.yaml_place import Place, PriceBookMalformed, compose
from steelyard.timestamp import read_timestamp

__all__ = ["PriceBaseCyclic", "PriceBaseNotFound", "PriceBookMalformed", "read_price_book"]

_EQUIVALENT = re.compile(r"[a-z]+(?:\.[a-z]+)*\.equivalent_tokens")


class PriceBaseNotFound(Refusal):
    """The price book extends a book that is not published."""

    code = "price_base_not_found"


class PriceBaseCyclic(Refusal):
    """A price book cannot extend itself."""

    code = "price_base_cyclic"


def read_price_book(text: str, *, published: Sequence[PriceVersion] = ()) -> PriceBook:
    """Parse, check and compile a price book; raises PriceBookMalformed with the line.

    `published` are the versions that it may extend.
    """
    fields = compose(text).fields(
        required={"schema", "name", "currency", "effective_from"},
        optional={"models", "applies_to", "extends", "adjust"},
    )
    if fields["schema"].text() != SCHEMA:
        raise fields["schema"].malformed(f"expected {SCHEMA}")
    book = PriceBook(
        name=_read_name(fields["name"]),
        currency=_read_currency(fields["currency"]),
        effective_from=_read_moment(fields["effective_from"]),
        models=(),
        applies_to=_read_applies_to(fields["applies_to"]) if "applies_to" in fields else LIST,
    )
    if "extends" in fields:
        return _read_extending(book, fields, published=published)
    if "adjust" in fields:
        raise fields["adjust"].malformed("a book adjusts what it extends; name that in 'extends'")
    if "models" not in fields:
        raise PriceBookMalformed("line 1: the book: the key 'models' is missing")
    models = [_read_entry(place, inherited={}) for place in fields["models"].items()]
    if not models:
        raise fields["models"].malformed("a book prices at least one model")
    return replace(book, models=tuple(models))


def _read_extending(
    book: PriceBook, fields: dict[str, Place], *, published: Sequence[PriceVersion]
) -> PriceBook:
    """The book's own entries first, then those that it inherits and does not replace."""
    base = _find_base(book, fields["extends"], published)
    adjustment = _read_adjust(fields["adjust"]) if "adjust" in fields else None
    inherited = {entry.match: entry for entry in base.book.models}
    places = fields["models"].items() if "models" in fields else []
    own = [_read_entry(place, inherited=inherited) for place in places]
    replaced = {entry.match for entry in own}
    kept = [
        adjustment.apply(entry) if adjustment else entry
        for entry in base.book.models
        if entry.match not in replaced
    ]
    percent = adjustment.percent if adjustment else None
    return replace(
        book,
        models=(*own, *kept),
        base=BaseBook(base.sha256, base.book.name, percent),
    )


def _find_base(book: PriceBook, place: Place, published: Sequence[PriceVersion]) -> PriceVersion:
    wanted = place.text()
    if wanted == book.name:
        raise PriceBaseCyclic(f"line {place.line}: the price book {wanted!r} extends itself")
    for version in published:
        if wanted in {version.book.name, version.sha256}:
            if version.book.currency != book.currency:
                raise place.malformed(f"its prices are in {version.book.currency}")
            return version
    raise PriceBaseNotFound(
        f"line {place.line}: there is no published price book {wanted!r} to extend; "
        "'steelyard price list' shows them"
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
    except (ValueError, OverflowError) as error:
        raise place.malformed(f"{error}; write it as 2026-11-01T00:00:00Z") from error


def _read_applies_to(place: Place) -> AppliesTo:
    fields = place.fields(required=set(), optional={"plan", "organisation"})
    match list(fields.items()):
        case [("plan", name)]:
            return AppliesTo("plan", _read_name(name))
        case [("organisation", name)]:
            return AppliesTo("organisation", _read_name(name))
        case _:
            raise place.malformed("name one plan or one organisation")


def _read_adjust(place: Place) -> Adjustment:
    percent = place.fields(required={"percent"}, optional=set())["percent"]
    try:
        return read_adjustment(percent.text())
    except ValueError as error:
        raise percent.malformed(str(error)) from error


def _read_entry(place: Place, *, inherited: dict[str, ModelPrices]) -> ModelPrices:
    """An entry states prices, or adjusts those that it inherits under the same match."""
    fields = place.fields(
        required={"match"},
        optional={"prices", "source", "equivalent_tokens", "minimum", "adjust", "batch"},
    )
    match = fields["match"].text()
    if "prices" in fields:
        entry = _read_stated(match, fields)
    elif match in inherited:
        entry = inherited[match]
        if "equivalent_tokens" in fields:
            raise fields["equivalent_tokens"].malformed("it stands beside prices")
        if "minimum" in fields:
            raise fields["minimum"].malformed("it stands beside prices")
    else:
        raise place.malformed("the key 'prices' is missing, and nothing of this match is inherited")
    if "source" in fields:
        entry = replace(entry, source=fields["source"].text())
    if "adjust" in fields:
        entry = _read_adjust(fields["adjust"]).apply(entry)
    return _read_adjust(fields["batch"]).batch_of(entry) if "batch" in fields else entry


def _read_stated(match: str, fields: dict[str, Place]) -> ModelPrices:
    formulas = _read_formulas(fields["equivalent_tokens"]) if "equivalent_tokens" in fields else {}
    meters: dict[str, Price] = {}
    for meter, place in fields["prices"].entries().items():
        if meter not in METERS and meter not in formulas:
            raise place.malformed(f"unknown meter; the meters are {', '.join(METERS)}")
        meters[meter] = read_price(place)
    if not meters:
        raise fields["prices"].malformed("a model has at least one price")
    for meter in formulas:
        if meter not in meters:
            raise fields["equivalent_tokens"].malformed(f"{meter} has no price in 'prices'")
    return ModelPrices(
        match=match,
        meters=meters,
        equivalent_tokens=formulas,
        minimum=_read_minimum(fields["minimum"]) if "minimum" in fields else None,
    )


def _read_formulas(place: Place) -> dict[str, Formula]:
    formulas: dict[str, Formula] = {}
    for meter, text in place.entries().items():
        if not _EQUIVALENT.fullmatch(meter):
            raise text.malformed("the name of equivalent tokens ends with .equivalent_tokens")
        try:
            formulas[meter] = read_formula(text.text())
        except FormulaMalformed as error:
            raise text.malformed(str(error)) from error
    if not formulas:
        raise place.malformed("state at least one formula, or leave the key out")
    return formulas


def _read_minimum(place: Place) -> int:
    minimum = read_amount(place, per=1)
    if not minimum:
        raise place.malformed("a minimum is more than zero; leave the key out for none")
    return minimum
