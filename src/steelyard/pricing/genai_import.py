"""Makes a price book of the providers of the genai-prices package. The package is passed in: it is
optional, and pricing itself never needs it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from steelyard.metering.usage import (
    CALL,
    INPUT_AUDIO_SECONDS,
    INPUT_AUDIO_TOKENS,
    INPUT_AUDIO_TOKENS_CACHE_READ,
    INPUT_CHARACTERS,
    INPUT_IMAGE_TOKENS,
    INPUT_IMAGE_TOKENS_CACHE_READ,
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
    OUTPUT_AUDIO_TOKENS,
    OUTPUT_IMAGE_TOKENS,
    OUTPUT_TEXT,
    OUTPUT_TEXT_REASONING,
    SEARCH,
)
from steelyard.pricing.imported_book import (
    ImportedBook,
    ImportFindings,
    LaterPrice,
    LeftOut,
    NotExact,
    UnsupportedField,
    first_of_each_match,
    picos_of,
)
from steelyard.pricing.price import Price, Tier, Window
from steelyard.pricing.price_book import ModelPrices, PriceBook

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, MatchLogic, ModelInfo, ModelPrice, Provider

METER_OF: Final[Mapping[str, tuple[str, int]]] = {
    "input_mtok": (INPUT_TEXT, 10**6),
    "cache_read_mtok": (INPUT_TEXT_CACHE_READ, 10**6),
    "cache_write_mtok": (INPUT_TEXT_CACHE_WRITE, 10**6),
    "cache_write_1h_mtok": (INPUT_TEXT_CACHE_WRITE_1H, 10**6),
    "input_audio_mtok": (INPUT_AUDIO_TOKENS, 10**6),
    "cache_audio_read_mtok": (INPUT_AUDIO_TOKENS_CACHE_READ, 10**6),
    "input_image_mtok": (INPUT_IMAGE_TOKENS, 10**6),
    "cache_image_read_mtok": (INPUT_IMAGE_TOKENS_CACHE_READ, 10**6),
    "output_mtok": (OUTPUT_TEXT, 10**6),
    "output_reasoning_mtok": (OUTPUT_TEXT_REASONING, 10**6),
    "output_audio_mtok": (OUTPUT_AUDIO_TOKENS, 10**6),
    "output_image_mtok": (OUTPUT_IMAGE_TOKENS, 10**6),
    "web_searches_kcount": (SEARCH, 1_000),
    "requests_kcount": (CALL, 1_000),
    "audio_hours": (INPUT_AUDIO_SECONDS, 3_600),
    "input_audio_hours": (INPUT_AUDIO_SECONDS, 3_600),
    "input_mchars": (INPUT_CHARACTERS, 10**6),
}


def import_genai_prices(
    providers: Sequence["Provider"], *, book: PriceBook, version: str
) -> ImportedBook:
    """Fill an empty book with what is in force in the list when the book begins.

    Of a name that several models answer to, the first of the list has it, as in the package.
    """
    findings = ImportFindings()
    entries: list[ModelPrices] = []
    for provider in providers:
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            try:
                meters = _meters_at(model, name, at=book.effective_from, findings=findings)
            except NotExact as reason:
                findings.left_out.append(LeftOut(name, str(reason)))
                continue
            source = f"genai-prices {version}: {name}"
            entries += _entries(model, ModelPrices("", meters, source), name, findings)
    kept = _without_shadowed(first_of_each_match(entries, findings), providers, findings)
    return ImportedBook(replace(book, models=tuple(kept)), findings)


def _entries(
    model: "ModelInfo", prices: ModelPrices, name: str, findings: ImportFindings
) -> list[ModelPrices]:
    """The same prices under each way to match the model."""
    matches: list[str] = []
    for clause in _alternatives(model.match):
        match = _pattern(clause)
        if match is None:
            reason = f"no shell pattern says {clause}"
            findings.left_out.append(LeftOut(name, reason))
        elif match not in matches:
            matches.append(match)
    return [replace(prices, match=match) for match in matches]


def _alternatives(clause: "MatchLogic") -> Iterable["MatchLogic"]:
    from genai_prices.types import ClauseOr

    if not isinstance(clause, ClauseOr):
        return [clause]
    return [inner for part in clause.or_ for inner in _alternatives(part)]


def _pattern(clause: "MatchLogic") -> str | None:
    from genai_prices import types as genai

    match clause:
        case genai.ClauseEquals(equals=text):
            return text
        case genai.ClauseStartsWith(starts_with=text):
            return f"{_escaped(text)}*"
        case genai.ClauseEndsWith(ends_with=text):
            return f"*{_escaped(text)}"
        case genai.ClauseContains(contains=text):
            return f"*{_escaped(text)}*"
        case _:
            return None


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _without_shadowed(
    entries: Sequence[ModelPrices], providers: Sequence["Provider"], findings: ImportFindings
) -> Iterable[ModelPrices]:
    """Leave out names that an earlier model of the list answers to by a pattern: with us an exact
    name would go before it."""
    from genai_prices.types import ClauseEquals

    names = [f"{provider.id}/{model.id}" for provider in providers for model in provider.models]
    place = {name: number for number, name in enumerate(names)}
    patterns = [
        (clause, f"{provider.id}/{model.id}")
        for provider in providers
        for model in provider.models
        for clause in _alternatives(model.match)
        if not isinstance(clause, ClauseEquals)
    ]
    for entry in entries:
        own = (entry.source or "").partition(": ")[2]
        is_exact = not set("*?[") & set(entry.match)
        owner = next(
            (
                name
                for clause, name in patterns
                if place[name] < place[own] and is_exact and clause.is_match(entry.match.lower())
            ),
            None,
        )
        if owner is None:
            yield entry
        else:
            reason = f"{entry.match!r} is a name of {owner}, which is earlier in the list"
            findings.left_out.append(LeftOut(own, reason))


def _meters_at(
    model: "ModelInfo", name: str, *, at: datetime, findings: ImportFindings
) -> dict[str, Price]:
    base, windowed = _in_force(model, name, at=at, findings=findings)
    for variant in model.price_variants or ():
        wanted = " and ".join(f"{key}={value}" for key, value in sorted(variant.when.items()))
        findings.unsupported.append(UnsupportedField(name, f"price_variants: {wanted}"))
    stated = _amounts(base)
    if not stated:
        raise NotExact("it has no prices")
    for key in sorted(stated.keys() - METER_OF.keys()):
        findings.unsupported.append(UnsupportedField(name, key))
    others = [_amounts(conditional.prices) for conditional in windowed]
    if any(other.keys() != stated.keys() for other in others):
        raise NotExact("its windows price other fields than its base")
    meters: dict[str, Price] = {}
    for key, (meter, per) in METER_OF.items():
        if key not in stated:
            continue
        windows = tuple(
            _window(conditional, other[key], per=per)
            for conditional, other in zip(windowed, others, strict=True)
        )
        picos, tiers = _picos(stated[key], per=per)
        meters[meter] = Price(picos, per, tiers, windows)
    if not meters:
        raise NotExact("none of its prices has a meter here")
    if INPUT_TEXT_CACHE_WRITE in meters:
        # The list counts writes for an hour among all writes; our meters stand side by side.
        meters.setdefault(INPUT_TEXT_CACHE_WRITE_1H, meters[INPUT_TEXT_CACHE_WRITE])
    return meters


def _in_force(
    model: "ModelInfo", name: str, *, at: datetime, findings: ImportFindings
) -> tuple["ModelPrice", list["ConditionalPrice"]]:
    """The price of that day, and those of times of day that go before it, the first to ask first.

    The list is read from its end: what comes later goes before what comes earlier.
    """
    from genai_prices.types import ModelPrice, StartDateConstraint

    if isinstance(model.prices, ModelPrice):
        return model.prices, []
    if not model.prices:
        raise NotExact("it has no prices")
    windowed: list[ConditionalPrice] = []
    base: ModelPrice | None = None
    for conditional in reversed(model.prices):
        constraint = conditional.constraint
        if isinstance(constraint, StartDateConstraint) and constraint.start_date > at.date():
            findings.later.append(LaterPrice(name, constraint.start_date))
        elif base is not None:
            continue
        elif constraint is None or isinstance(constraint, StartDateConstraint):
            base = conditional.prices
        else:
            windowed.append(conditional)
    return base or model.prices[0].prices, windowed


def _amounts(prices: "ModelPrice") -> dict[str, object]:
    return {
        key: value
        for key, value in vars(prices).items()
        if value is not None and not key.startswith("_")
    }


def _picos(value: object, *, per: int) -> tuple[int, tuple[Tier, ...]]:
    from genai_prices.types import TieredPrices

    if isinstance(value, Decimal):
        return picos_of(value, per=per), ()
    assert isinstance(value, TieredPrices), f"a price of an unknown shape: {value!r}"
    tiers = {tier.start: picos_of(tier.price, per=per) for tier in value.tiers}
    if 0 in tiers:
        raise NotExact("a tier that starts at zero tokens")
    return picos_of(value.base, per=per), tuple(Tier(a, p) for a, p in sorted(tiers.items()))


def _window(conditional: "ConditionalPrice", value: object, *, per: int) -> Window:
    from genai_prices.types import TimeOfDateConstraint

    constraint = conditional.constraint
    assert isinstance(constraint, TimeOfDateConstraint), f"unknown constraint {constraint!r}"
    opens, closes = _utc(constraint.start_time), _utc(constraint.end_time)
    if opens == closes or opens.second or closes.second:
        raise NotExact(f"a window from {opens} to {closes}")
    picos, tiers = _picos(value, per=per)
    return Window(opens, closes, "UTC", (), picos, tiers)


def _utc(value: time) -> time:
    """A time of day in UTC; one without an offset is in UTC already."""
    offset = value.utcoffset() or timedelta(0)
    moment = datetime.combine(datetime(2000, 1, 2, tzinfo=UTC), value.replace(tzinfo=None))
    return (moment - offset).time()
