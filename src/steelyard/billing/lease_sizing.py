"""How much a lease is of: a share of what is there, so that no gateway ever corners a balance. Pure."""

from typing import Final

import msgspec

# A lease takes at most this part of what is available, and of the room in each hard budget: as a
# balance shrinks, so do its leases, and what they strand is small.
SHARE: Final = 16
# A lease that would not cover so many holds like the one that asks is not worth its two
# transactions: the balance is thin, and holds are placed in the books one by one.
HOLDS_MIN: Final = 4


class LeaseSize(msgspec.Struct, frozen=True):
    """What a lease is of: money, and tokens where budgets count them."""

    picos: int
    tokens: int

    def __add__(self, other: "LeaseSize") -> "LeaseSize":
        return LeaseSize(self.picos + other.picos, self.tokens + other.tokens)

    def times(self, count: int) -> "LeaseSize":
        return LeaseSize(self.picos * count, self.tokens * count)


def size_lease(
    wanted: LeaseSize,
    *,
    hold: LeaseSize,
    available: int,
    budget_picos: int | None,
    budget_tokens: int | None,
) -> LeaseSize | None:
    """What may be leased of what is wanted, in whole shares; None where that is too thin.

    `hold` is the hold that the lease is asked for by: its proportion of tokens to money is kept.
    """
    money = [available, *([] if budget_picos is None else [budget_picos])]
    picos = min(wanted.picos, *(left // SHARE for left in money))
    if picos < hold.picos * HOLDS_MIN:
        return None
    if budget_tokens is None:
        return LeaseSize(picos, wanted.tokens)
    tokens = min(wanted.tokens, budget_tokens // SHARE)
    return LeaseSize(picos, tokens) if tokens >= hold.tokens * HOLDS_MIN else None
