"""How much a request can cost at most, and how much of it a balance affords. Pure.

Prices are those of the moment of admission: which windows are open is decided before.
"""

from bisect import bisect_right
from collections.abc import Mapping

from steelyard.metering.usage import (
    CALL,
    ENGINE_TIME,
    INPUT_TEXT,
    INPUT_TOKENS,
    ITEM,
    OUTPUT_TEXT,
)
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import ModelPrices, PriceNotFound

OUTPUT_TOKENS_MAX = 2**31
# Engine time is known only afterwards. A token of a large model on a slow CPU takes less than this;
# what takes longer yet is charged as far as the hold goes.
ENGINE_MICROSECONDS_PER_TOKEN_MAX = 100_000


def highest_charge(
    *, input_tokens: int, output_tokens: int, prices: ModelPrices, currency: Currency
) -> Money:
    """No answer within these bounds costs more, whichever meters its tokens turn out to be."""
    counts_max = {INPUT_TEXT: input_tokens, OUTPUT_TEXT: output_tokens}
    if prices.bearer_of(CALL):
        counts_max[CALL] = 1
    engine_time_max = (input_tokens + output_tokens) * ENGINE_MICROSECONDS_PER_TOKEN_MAX
    counts_max |= {meter: engine_time_max for meter in ENGINE_TIME if prices.bearer_of(meter)}
    return highest_charge_within(counts_max, prices=prices, currency=currency)


def highest_charge_within(
    counts_max: Mapping[str, int], *, prices: ModelPrices, currency: Currency
) -> Money:
    """The most that a usage costs which counts up to so much of each family of meters.

    A family is a meter with all that are parts of it: `input.text` bounds cached tokens too. The
    bound is what each unit costs at its dearest, and what the formulas give at their highest.
    """
    prompt_max = 0
    for family, count in counts_max.items():
        if family in INPUT_TOKENS:
            prompt_max += count
    picos = 0
    for family, count in counts_max.items():
        rate = prices.dearest_of(family, size_max=count if family == ITEM else prompt_max)
        if rate is None:
            raise PriceNotFound(f"the prices for {prices.match!r} do not name the meter {family!r}")
        picos += count * rate
    for meter, formula in prices.equivalent_tokens.items():
        counts = {name: _count_max(name, counts_max) for name in formula.meters}
        rate = prices.meters[meter].highest_picos_per_unit(size_max=prompt_max)
        picos += formula.highest(counts) * rate
    return Money(max(picos, prices.minimum or 0), currency)


def affordable_output_tokens(available: Money, *, input_tokens: int, prices: ModelPrices) -> int:
    """How many tokens of answer the balance pays for, once it has paid for the prompt."""

    def highest(output_tokens: int) -> int:
        return highest_charge(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            prices=prices,
            currency=available.currency,
        ).picos

    # The bound only grows with the answer, so what is affordable is found by halving.
    affordable = bisect_right(range(OUTPUT_TOKENS_MAX + 1), available.picos, key=highest) - 1
    return max(0, affordable)


def _count_max(name: str, counts_max: Mapping[str, int]) -> int:
    """How much a name in a formula can count: what its family, or what it is a part of, can."""
    return sum(
        count
        for family, count in counts_max.items()
        if name == family or name.startswith(f"{family}.") or family.startswith(f"{name}.")
    )
