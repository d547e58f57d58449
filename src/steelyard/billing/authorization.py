"""How much a request can cost at most, and how much of it a balance affords. Pure."""

from steelyard.metering.usage import INPUT_TEXT, OUTPUT_TEXT
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import ModelPrices, PriceNotFound


def highest_charge(
    *, input_tokens: int, output_tokens: int, prices: ModelPrices, currency: Currency
) -> Money:
    """No answer within these bounds costs more, whichever meters its tokens turn out to be."""
    highest_input, highest_output = _highest_rates(prices, input_tokens_max=input_tokens)
    return Money(input_tokens * highest_input + output_tokens * highest_output, currency)


def affordable_output_tokens(available: Money, *, input_tokens: int, prices: ModelPrices) -> int:
    """How many tokens of answer the balance pays for, once it has paid for the prompt."""
    highest_input, highest_output = _highest_rates(prices, input_tokens_max=input_tokens)
    left = available.picos - input_tokens * highest_input
    if left < 0:
        return 0
    return left // highest_output if highest_output else 2**31


def _highest_rates(prices: ModelPrices, *, input_tokens_max: int) -> tuple[int, int]:
    return (
        _highest_rate(prices, INPUT_TEXT, input_tokens_max=input_tokens_max),
        _highest_rate(prices, OUTPUT_TEXT, input_tokens_max=input_tokens_max),
    )


def _highest_rate(prices: ModelPrices, family: str, *, input_tokens_max: int) -> int:
    if family not in prices.meters:
        raise PriceNotFound(f"the prices for {prices.match!r} do not name the meter {family!r}")
    return max(
        price.highest_picos_per_unit(input_tokens_max=input_tokens_max)
        for meter, price in prices.meters.items()
        if meter == family or meter.startswith(f"{family}.")
    )
