"""Our rating against that of genai-prices itself: every model that both know, thousands of usages.

Every difference has a name and a count here. A new one fails.
"""

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random

import pytest
from genai_prices import __version__
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider
from genai_prices.types import Usage as GenaiUsage

from steelyard.metering.usage import Usage
from steelyard.money import Currency
from steelyard.pricing.genai_import import import_genai_prices
from steelyard.pricing.price_book import ModelPrices, PriceBook
from steelyard.pricing.rating import rate_usage

USD = Currency("USD")
STARTS = datetime(2026, 11, 24, tzinfo=UTC)
USAGES_PER_ENTRY = 3
# What we count side by side, and the inclusive counts of the package that it is a part of.
PARTS = {
    "input.text": ("input_tokens",),
    "input.text.cache_read": ("input_tokens", "cache_read_tokens"),
    "input.text.cache_write": ("input_tokens", "cache_write_tokens"),
    "input.text.cache_write_1h": ("input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "input.audio.tokens": ("input_tokens", "input_audio_tokens"),
    "input.audio.tokens.cache_read": (
        "input_tokens",
        "input_audio_tokens",
        "cache_read_tokens",
        "cache_audio_read_tokens",
    ),
    "input.image.tokens": ("input_tokens", "input_image_tokens"),
    "input.image.tokens.cache_read": (
        "input_tokens",
        "input_image_tokens",
        "cache_read_tokens",
        "cache_image_read_tokens",
    ),
    "output.text": ("output_tokens",),
    "output.text.reasoning": ("output_tokens", "output_reasoning_tokens"),
    "output.audio.tokens": ("output_tokens", "output_audio_tokens"),
    "output.image.tokens": ("output_tokens", "output_image_tokens"),
    "input.audio.seconds": ("audio_seconds", "input_audio_seconds"),
    "input.characters": ("input_characters",),
    "search": ("web_searches",),
    "call": (),
}
# The shortest name that fits one pattern may be fitted by an entry that stands before it.
SHARED_NAME, SKIPPED_MAX = "the name belongs to another entry", 1
LENGTHS = (1, 7, 999, 32_000, 128_000, 128_001, 200_000, 200_001, 272_000, 272_001, 1_000_003)


def _book(provider: Provider) -> PriceBook:
    empty = PriceBook("list", USD, STARTS, ())
    return import_genai_prices([provider], book=empty, version=__version__).book


def _usage(random: Random, prices: ModelPrices) -> Usage:
    """Some of the meters that the entry prices; a call is always one."""
    counts = {
        meter: 1 if meter == "call" else random.choice(LENGTHS)
        for meter in PARTS
        if prices.bearer_of(meter) and (meter == "call" or random.random() < 0.6)
    }
    return Usage(counts)


def _theirs(model: ModelInfo, provider: Provider, usage: Usage, *, at: datetime) -> Decimal:
    inclusive = {name: 0 for names in PARTS.values() for name in names}
    for meter, count in usage.counts.items():
        for name in PARTS[meter]:
            inclusive[name] += count
    price = model.calc_price(GenaiUsage(**inclusive), provider, genai_request_timestamp=at)
    return price.total_price


def _a_name(match: str) -> str:
    """A name that the match fits."""
    return match.replace("*", "") or "x"


def _model_of(entry: ModelPrices, provider: Provider, book: PriceBook) -> ModelInfo | None:
    """The package's model for a name that the entry fits; None if that is not the entry's own."""
    name = _a_name(entry.match)
    model = provider.find_model(name)
    assert model is not None, f"{provider.id} does not know {name!r}"
    is_own = (entry.source or "").endswith(f": {provider.id}/{model.id}")
    return model if is_own and book.prices_of(name) == entry else None


def test_every_model_costs_what_the_package_says_it_costs() -> None:
    random = Random(20261124)
    models, skipped = set[str](), Counter[str]()
    compared, differences = 0, list[str]()
    for provider in providers:
        book = _book(provider)
        for entry in book.models:
            model = _model_of(entry, provider, book)
            if model is None:
                skipped[SHARED_NAME] += 1
                continue
            models.add(entry.source or "")
            for _ in range(USAGES_PER_ENTRY):
                at = STARTS.replace(hour=random.randrange(24), minute=random.choice([0, 29, 30]))
                usage = _usage(random, entry)
                ours = rate_usage(usage, prices=entry.at(at), currency=USD).total.picos
                theirs = Fraction(_theirs(model, provider, usage, at=at)) * 10**12
                compared += 1
                if ours != theirs:
                    differences.append(f"{entry.source} {usage.counts} {at}: {ours}, {theirs}")

    print(f"{compared} usages of {len(models)} models, {dict(skipped)}")
    assert differences == []
    assert compared > 5_000
    assert skipped.total() <= SKIPPED_MAX


@pytest.mark.parametrize("provider", providers, ids=lambda provider: provider.id)
def test_every_model_is_in_the_book_or_named_as_left_out(provider: Provider) -> None:
    empty = PriceBook("list", USD, STARTS, ())

    imported = import_genai_prices([provider], book=empty, version=__version__)

    inside = {(entry.source or "").partition(": ")[2] for entry in imported.book.models}
    outside = {found.model for found in imported.findings.left_out}
    assert {f"{provider.id}/{model.id}" for model in provider.models} <= inside | outside
