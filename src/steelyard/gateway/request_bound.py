"""The most that a request may use, what that costs, and what is said where money does not reach."""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from steelyard.billing.authorization import affordable_output_tokens, highest_charge_within
from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.gateway.prices import PinnedPrices
from steelyard.gateway.refusals import (
    NotEnoughMoney,
    OverBudget,
)
from steelyard.gateway.workloads.asked import Asked
from steelyard.metering.usage import (
    CACHE_HIT,
    CALL,
    INPUT_AUDIO_TOKENS,
    INPUT_IMAGE_TOKENS,
    INPUT_TEXT,
    ITEM,
    OUTPUT_AUDIO_TOKENS,
    OUTPUT_IMAGE_TOKENS,
    OUTPUT_TEXT,
    UNITS_OF_CHOICE,
    tokens_within,
)
from steelyard.money import Money
from steelyard.pricing.price_book import PriceNotFound

# Tokens that are not text, and may cost more.
_OTHER_INPUT: Final = (INPUT_AUDIO_TOKENS, INPUT_IMAGE_TOKENS)
_OTHER_OUTPUT: Final = (OUTPUT_AUDIO_TOKENS, OUTPUT_IMAGE_TOKENS)


class Bound(msgspec.Struct, frozen=True):
    """The tokens that a request may use at most, all choices together; `is_exact` where the prompt
    was counted. Work that is not text has its bounds by meter."""

    input_tokens: int
    output_tokens: int
    is_exact: bool
    extra_tokens: int
    item_count: int = 0
    counts_max: Mapping[str, int] | None = None
    # A stream is held for piece by piece, each of so many tokens.
    chunk_tokens: int = 0
    is_hit: bool = False

    @property
    def first(self) -> "Bound":
        """What is held for before the work."""
        if not self.chunk_tokens:
            return self
        return replace(self, output_tokens=min(self.output_tokens, self.chunk_tokens))

    @property
    def tokens_max(self) -> int:
        """What it may use of a budget of tokens."""
        tokens = self.input_tokens + self.output_tokens
        return tokens if self.counts_max is None else tokens + tokens_within(self.counts_max)


def bound_of(
    asked: Asked, input_tokens: int, output_tokens: int, *, is_exact: bool, chunk: int = 0
) -> Bound:
    extra, items = asked.size.extra_tokens, asked.item_count
    return Bound(input_tokens, output_tokens, is_exact, extra, items, chunk_tokens=chunk)


def affordable_tokens(
    declined: HoldDeclined | BudgetExceeded, bound: Bound, pinned: PinnedPrices
) -> int:
    """How many tokens of answer there is room for, once the prompt has had its own."""
    if isinstance(declined, BudgetExceeded) and declined.unit == "tokens":
        return declined.left - bound.input_tokens
    left = (
        Money(declined.left, pinned.currency)
        if isinstance(declined, BudgetExceeded)
        else declined.available
    )
    return affordable_output_tokens(left, input_tokens=bound.input_tokens, prices=pinned.prices)


def too_little(
    declined: HoldDeclined | BudgetExceeded, affordable: int, bound: Bound, pinned: PinnedPrices
) -> NotEnoughMoney | OverBudget:
    advice = f"ask for at most {affordable} tokens (max_tokens), or " if affordable >= 1 else ""
    if isinstance(declined, BudgetExceeded):
        return OverBudget(f"{declined}; {advice}ask for a larger budget")
    return NotEnoughMoney(
        f"this request may cost up to {highest_cost_of(bound, pinned)} ({_size_of(bound)}); "
        f"available: {declined.available}; {advice}top up"
    )


def _size_of(bound: Bound) -> str:
    if bound.counts_max is not None:
        return ", ".join(f"{count} {meter}" for meter, count in bound.counts_max.items())
    items = f"{bound.item_count} items, " if bound.item_count else ""
    return f"{items}{bound.input_tokens} tokens in, up to {bound.output_tokens} out"


def bound_of_hit(pinned: PinnedPrices) -> Bound:
    """Of an answer from the cache: its own price, where there is one."""
    counts = {CACHE_HIT: 1} if pinned.prices.bearer_of(CACHE_HIT) else {}
    return Bound(0, 0, is_exact=True, extra_tokens=0, counts_max=counts, is_hit=True)


def bound_by_meter(counts_max: Mapping[str, int], pinned: PinnedPrices) -> Bound:
    """The bounds that cost something: of the units of choice only those that are priced, of which
    there has to be one. Raises PriceNotFound."""
    choices = UNITS_OF_CHOICE & counts_max.keys()
    # Work that is priced in such a unit needs no price for the text that it reads.
    optional = choices | {INPUT_TEXT} if choices else choices
    chosen = {
        meter: count
        for meter, count in counts_max.items()
        if meter not in optional or pinned.prices.bearer_of(meter)
    }
    if choices and not choices & chosen.keys():
        raise PriceNotFound(
            f"the prices for {pinned.prices.match!r} name none of {', '.join(sorted(choices))}"
        )
    return Bound(0, 0, is_exact=True, extra_tokens=0, counts_max=chosen)


def highest_cost_of(bound: Bound, pinned: PinnedPrices) -> Money:
    """What these tokens and items cost at their dearest, should the tokens be sound or images where
    those have a price of their own."""
    prices = pinned.prices
    if bound.counts_max is not None:
        calls = {CALL: 1} if prices.bearer_of(CALL) and not bound.is_hit else {}
        return highest_charge_within(
            {**bound.counts_max, **calls}, prices=prices, currency=pinned.currency
        )
    is_by_item = bool(bound.item_count) and (ITEM in prices or CALL in prices)
    counts_max: dict[str, int] = {}
    # Work that writes nothing needs no price for what is written, and work that is priced by the
    # item or the call none for the tokens that it reads.
    if bound.input_tokens and (not is_by_item or INPUT_TEXT in prices):
        counts_max[INPUT_TEXT] = bound.input_tokens
    if bound.output_tokens and not is_by_item:
        counts_max[OUTPUT_TEXT] = bound.output_tokens
    if CALL in prices:
        counts_max[CALL] = 1
    if bound.item_count and ITEM in prices:
        counts_max[ITEM] = bound.item_count
    for meters, count in (
        (_OTHER_INPUT, bound.extra_tokens),
        (_OTHER_OUTPUT, bound.output_tokens),
    ):
        if count:
            for meter in meters:
                if meter in prices:
                    counts_max[meter] = count
    return highest_charge_within(counts_max, prices=prices, currency=pinned.currency)
