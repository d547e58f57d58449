"""Rating is exact, and the two ways to do it agree at every boundary."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.billing.authorization import affordable_output_tokens, highest_charge
from steelyard.billing.event_rating import rate_record
from steelyard.metering.usage import INPUT_TEXT, INPUT_TEXT_CACHE_READ, OUTPUT_TEXT, Usage
from steelyard.metering.usage_event import write_meters
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import canonical_bytes, publishable_version, read_canonical
from steelyard.pricing.price_book_yaml import read_price_book
from steelyard.pricing.rating import rate_usage
from tests.unit.test_outbox import a_record

USD = Currency("USD")
BOOK = read_price_book(
    """
schema: steelyard.price-book/v1
name: tiers
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: m
    prices:
      input.text:
        { amount: 1.25, per: 1M, tiers: [{above: 200_000, amount: 2.50}, {above: 500_000, amount: 2}] }
      input.text.cache_read: { amount: 0.125, per: 1M, tiers: [{above: 200_000, amount: 0.25}] }
      output.text: { amount: 10, per: 1M, tiers: [{above: 200_000, amount: 15}] }
"""
)
PRICES = BOOK.models[0]
DOCUMENT = json.loads(canonical_bytes(BOOK))
COUNTS = st.integers(0, 600_000)


def _usage(*, fresh: int, cached: int, output: int) -> Usage:
    counts = {INPUT_TEXT: fresh, INPUT_TEXT_CACHE_READ: cached, OUTPUT_TEXT: output}
    return Usage({meter: count for meter, count in counts.items() if count})


def _total(usage: Usage) -> int:
    return rate_usage(usage, prices=PRICES, currency=USD).total.picos


@pytest.mark.parametrize(
    ("tokens", "picos_per_token"),
    [
        (1, 1_250_000),
        (200_000, 1_250_000),
        (200_001, 2_500_000),
        (500_000, 2_500_000),
        (500_001, 2_000_000),
    ],
)
def test_a_tier_is_a_cliff_between_its_last_token_and_the_next(
    tokens: int, picos_per_token: int
) -> None:
    assert _total(_usage(fresh=tokens, cached=0, output=0)) == tokens * picos_per_token


def test_cached_tokens_count_for_the_tier_too() -> None:
    usage = _usage(fresh=1, cached=200_000, output=1)

    assert _total(usage) == 2_500_000 + 200_000 * 250_000 + 15_000_000


@given(COUNTS, COUNTS, COUNTS)
def test_the_gateway_and_the_worker_agree_on_every_usage(
    fresh: int, cached: int, output: int
) -> None:
    usage = _usage(fresh=fresh, cached=cached, output=output)
    record = a_record(model_served="m", meters=write_meters(usage))

    by_worker = rate_record(record, document=DOCUMENT)

    assert sum(line.picos for line in by_worker) == _total(usage)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_no_usage_within_the_bound_costs_more_than_the_hold(
    fresh: int, cached: int, output: int, spare: int
) -> None:
    usage = _usage(fresh=fresh, cached=cached, output=output)

    held = highest_charge(
        input_tokens=fresh + cached + spare,
        output_tokens=output + spare,
        prices=PRICES,
        currency=USD,
    )

    assert _total(usage) <= held.picos


@given(st.integers(0, 10**13), COUNTS)
def test_what_is_affordable_is_covered_and_one_token_more_is_not(
    available: int, input_tokens: int
) -> None:
    money = Money(available, USD)

    tokens = affordable_output_tokens(money, input_tokens=input_tokens, prices=PRICES)

    def cost(output_tokens: int) -> int:
        return highest_charge(
            input_tokens=input_tokens, output_tokens=output_tokens, prices=PRICES, currency=USD
        ).picos

    assert tokens == 0 or cost(tokens) <= available
    assert cost(tokens + 1) > available


def test_tiers_are_part_of_the_published_bytes() -> None:
    again = read_canonical(DOCUMENT)

    assert publishable_version(again).sha256 == publishable_version(BOOK).sha256
    assert again.models[0].meters["input.text"].tiers == PRICES.meters["input.text"].tiers
