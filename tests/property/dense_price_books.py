"""Price books and usages by the thousand from a seed, crowded around the edges where prices jump."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from zoneinfo import ZoneInfo

from steelyard.metering.usage import Usage
from steelyard.pricing.adjustment import read_adjustment
from steelyard.pricing.formula import Formula, read_formula
from steelyard.pricing.price import DAYS, Price, Tier, Window
from steelyard.pricing.price_book import ModelPrices, PriceBook
from tests.property.price_books import EQUIVALENT, ZONES, a_book

METERS: tuple[str, ...] = (
    "input.text",
    "input.text.cache_read",
    "output.text",
    "output.text.reasoning",
    "call",
    "item",
)
BOUNDS = (2, 5, 9)
COUNTS = (1, 2, 3, 4, 5, 9, 10)
FORMULAS = (
    "input.text - 4",
    "(output.text - input.text) * (output.text.reasoning - input.text)",
    "3 + input.text.cache_read",
    "ceil(input.text / 4 + output.text * 0.3)",
    "round_half_even(output.text / 2) + floor(-0.5 * input.text) + 5",
    "max(input.text, output.text, 6) - min(input.text, output.text)",
)
FIRST_DAY = date(2026, 1, 1)


def dense_book(random: Random) -> PriceBook:
    """One model with two to five meters, and each feature in about half of the books."""
    names: list[str] = random.sample(METERS, random.randint(2, 5))
    formulas: dict[str, Formula] = {}
    if random.random() < 0.5:
        formulas[EQUIVALENT] = read_formula(random.choice(FORMULAS))
        names.append(EQUIVALENT)
    entry = ModelPrices(
        "m",
        {name: _price(random) for name in names},
        equivalent_tokens=formulas,
        minimum=random.choice([None, 1, 40, 200]),
    )
    percent = random.choice([None, "-50", "-100", "12.5"])
    return a_book(read_adjustment(percent).batch_of(entry) if percent else entry)


def dense_usage(random: Random) -> Usage:
    names = random.sample(METERS, random.randint(0, 4))
    return Usage({name: random.choice(COUNTS) for name in names})


def dense_moment(random: Random, prices: Sequence[Price]) -> datetime:
    """A moment at the edge of a window, just before it, or anywhere."""
    windows = [window for price in prices for window in price.windows]
    day = FIRST_DAY + timedelta(days=random.randrange(720))
    if not windows or random.random() < 0.1:
        minutes = random.randrange(24 * 60)
        return datetime.combine(day, time(minutes // 60, minutes % 60), UTC)
    window = random.choice(windows)
    edge = random.choice([window.opens, window.closes])
    local = datetime.combine(day, edge, ZoneInfo(window.time_zone))
    return local.astimezone(UTC) + timedelta(microseconds=random.choice([-1, 0, 0, 1]))


def _price(random: Random) -> Price:
    per = random.choice([1, 7])
    windows = [_window(random, per=per) for _ in range(random.choice([0, 0, 1, 2]))]
    return Price(random.randrange(30) * per, per, _tiers(random, per=per), tuple(windows))


def _tiers(random: Random, *, per: int) -> tuple[Tier, ...]:
    bounds = sorted(random.sample(BOUNDS, random.randint(0, 2)))
    return tuple(Tier(above, random.randrange(30) * per) for above in bounds)


def _window(random: Random, *, per: int) -> Window:
    opens = time(random.randrange(24), random.choice([0, 30]))
    closes = opens if random.random() < 0.1 else time(random.randrange(24), 15)
    days = random.sample(DAYS, random.choice([0, 1, 5]))
    return Window(
        opens=opens,
        closes=closes,
        time_zone=random.choice(ZONES),
        days=tuple(day for day in DAYS if day in days),
        picos=random.randrange(30) * per,
        tiers=_tiers(random, per=per),
    )
