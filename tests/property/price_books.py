"""Random price books, usages and moments: every feature, alone and together."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from hypothesis import strategies as st

from steelyard.metering.usage import METERS, Usage
from steelyard.money import Currency
from steelyard.pricing.formula import Formula, read_formula
from steelyard.pricing.price import DAYS, Price, Tier, Window
from steelyard.pricing.price_book import ModelPrices, PriceBook, canonical_document

USD = Currency("USD")
EQUIVALENT = "output.image.equivalent_tokens"
ZONES = ("UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kathmandu")
TEXT = ("input.text", "input.text.cache_read", "output.text", "output.text.reasoning")
BOUNDS = (1, 7, 1_000, 200_000)
UNIT_PICOS = st.sampled_from([0, 1, 3, 150_000, 2_500_000]) | st.integers(0, 10**13)
COUNTS = st.sampled_from([1, 2, 7, 8, 1_000, 1_001, 200_000, 200_001]) | st.integers(1, 10**7)
# The hours in which clocks change, and any other moment of two years.
SECONDS = st.integers(0, 2 * 365 * 24 * 3_600)
MOMENTS = st.one_of(
    st.tuples(st.just(datetime(2026, 1, 1, tzinfo=UTC)), SECONDS),
    st.tuples(st.just(datetime(2026, 3, 29, 0, 59, tzinfo=UTC)), st.integers(0, 7_200)),
    st.tuples(st.just(datetime(2026, 10, 25, 0, 30, tzinfo=UTC)), st.integers(0, 7_200)),
    st.tuples(st.just(datetime(2026, 11, 1, 5, 30, tzinfo=UTC)), st.integers(0, 7_200)),
).map(lambda pair: pair[0] + timedelta(seconds=pair[1]))


@dataclass(frozen=True)
class Case:
    """A book, its document, a usage, and when it was admitted."""

    book: PriceBook
    document: Mapping[str, Any]
    usage: Usage
    moment: datetime
    is_batch: bool = False


@st.composite
def tiers(draw: st.DrawFn, *, per: int) -> tuple[Tier, ...]:
    bounds = sorted(draw(st.sets(st.sampled_from(BOUNDS), max_size=3)))
    return tuple(Tier(above, draw(UNIT_PICOS) * per) for above in bounds)


@st.composite
def windows(draw: st.DrawFn, *, per: int) -> Window:
    minutes = st.integers(0, 24 * 60 - 1).map(lambda m: time(m // 60, m % 60))
    days = draw(st.sets(st.sampled_from(DAYS), max_size=6))
    return Window(
        opens=draw(minutes),
        closes=draw(minutes),
        time_zone=draw(st.sampled_from(ZONES)),
        days=tuple(day for day in DAYS if day in days),
        picos=draw(UNIT_PICOS) * per,
        tiers=draw(tiers(per=per)),
    )


@st.composite
def prices(draw: st.DrawFn) -> Price:
    per = draw(st.sampled_from([1, 7, 1_000, 1_000_000]))
    return Price(
        draw(UNIT_PICOS) * per,
        per,
        draw(tiers(per=per)),
        tuple(draw(st.lists(windows(per=per), max_size=2))),
    )


METER = st.sampled_from([*TEXT, *sorted(METERS)])
WHOLE = METER | st.sampled_from(["0", "1", "3", "65536"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: f"{p[0]} + {p[1]}"),
        pair.map(lambda p: f"({p[0]} - {p[1]})"),
        pair.map(lambda p: f"({p[0]}) * ({p[1]})"),
        pair.map(lambda p: f"max({p[0]}, {p[1]})"),
        pair.map(lambda p: f"min({p[0]}, {p[1]})"),
        inner.map(lambda t: f"-({t})"),
        inner.map(lambda t: f"ceil(({t}) / 7 * 0.25)"),
        inner.map(lambda t: f"floor(-0.5 * ({t}))"),
        inner.map(lambda t: f"round_half_even(({t}) / 2)"),
    )


FORMULAS: st.SearchStrategy[Formula] = (
    st.recursive(WHOLE, _larger, max_leaves=6).filter(lambda t: len(t) < 500).map(read_formula)
)


@st.composite
def entries(draw: st.DrawFn, *, meters: st.SearchStrategy[str] = METER) -> ModelPrices:
    priced = draw(st.dictionaries(meters, prices(), min_size=1, max_size=5))
    formulas: dict[str, Formula] = {}
    if draw(st.booleans()):
        formulas[EQUIVALENT] = draw(FORMULAS)
        priced[EQUIVALENT] = draw(prices())
    return ModelPrices(
        match="m",
        meters=priced,
        equivalent_tokens=formulas,
        minimum=draw(st.none() | st.integers(1, 10**13)),
    )


@st.composite
def usages(draw: st.DrawFn, entry: ModelPrices) -> Usage:
    """Mostly of meters that the entry prices."""
    likely = sorted({*TEXT, *(meter for meter in entry.meters if meter in METERS)})
    return Usage(draw(st.dictionaries(st.sampled_from(likely) | METER, COUNTS, max_size=5)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    book = a_book(draw(entries()))
    usage = draw(usages(book.models[0]))
    return Case(book, canonical_document(book), usage, draw(MOMENTS))


def a_book(entry: ModelPrices) -> PriceBook:
    return PriceBook(
        name="book",
        currency=USD,
        effective_from=datetime(2026, 1, 1, tzinfo=UTC),
        models=(entry,),
    )
