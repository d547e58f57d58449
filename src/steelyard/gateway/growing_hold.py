"""A hold that may begin below the worst case of an answer, and grows while its tokens flow."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.hold_decisions import HoldDeclined, HoldEnded
from steelyard.gateway.holding import Holding
from steelyard.ledger.hold import Hold
from steelyard.money import Money


@dataclass(slots=True)
class GrowingHold:
    """What is held for one attempt now.

    It covers `covered_tokens` of answer, and grows by `chunk_tokens` up to `output_tokens_max`;
    `amount_for` says what must be held for the prompt and so many tokens of answer.
    """

    hold: Hold
    holding: Holding
    input_tokens: int
    covered_tokens: int
    output_tokens_max: int
    chunk_tokens: int
    amount_for: Callable[[int], Money]

    async def cover(self, output_tokens: int) -> bool:
        """Whether the hold covers so many tokens of answer, grown if need be; what an upstream
        makes beyond the most that it was asked for is not this one's to say."""
        wanted = min(output_tokens, self.output_tokens_max)
        if wanted <= self.covered_tokens:
            return True
        ahead = min(self.output_tokens_max, wanted + self.chunk_tokens)
        return await self._grow(ahead) or await self._grow(wanted)

    async def _grow(self, output_tokens: int) -> bool:
        amount = self.amount_for(output_tokens)
        tokens_max = self.input_tokens + output_tokens
        try:
            grown = await self.holding.grow(self.hold, amount=amount, tokens_max=tokens_max)
        except (HoldDeclined, BudgetExceeded, HoldEnded):
            return False
        if grown is None:
            return False
        self.hold = replace(self.hold, amount=grown)
        self.covered_tokens = output_tokens
        return True
