"""A lease: part of a payer's money, and room in every budget above one key, that one gateway may
hold out of without asking the books."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from steelyard.ledger.hold import BudgetDraw, Draw, burn
from steelyard.money import Money

# Open: its gateway grants holds from it. Recalled: somebody is refused for want of this money.
# Drained: nothing is granted from it any more, and holds may still be open. Ended: its last event
# is known; when that is in the books, the rest goes back and the lease is gone.
LeaseStatus = Literal["open", "recalled", "drained", "ended"]


@dataclass(frozen=True, slots=True)
class Lease:
    """What is left of a lease: `amount` falls with every event and every return.

    `draws` says where the amount came from, in the order in which it burns; `budget_draws` what is
    still reserved of each budget. `source` is the gateway and its boot.
    """

    id: str
    organisation_id: str
    payer_id: str
    key_id: str
    source: str
    amount: Money
    granted_at: datetime
    expires_at: datetime
    draws: Sequence[Draw] = ()
    budget_draws: Sequence[BudgetDraw] = ()
    status: LeaseStatus = "open"
    last_event_id: str | None = None
    # The run that it is reserved for; nobody calls such a lease back.
    run_id: str | None = None

    def __post_init__(self) -> None:
        drawn = sum(draw.picos for draw in self.draws)
        assert drawn == self.amount.picos, f"a lease of {self.amount} drew {drawn} picos"

    @property
    def tokens(self) -> int | None:
        """How many tokens are reserved in each budget of tokens; None where there is none."""
        reserved = [draw.amount for draw in self.budget_draws if draw.unit == "tokens"]
        return min(reserved) if reserved else None

    def less(self, *, picos: int, tokens: int) -> "tuple[Lease, list[Draw], list[BudgetDraw]]":
        """What stays when so much goes back unused, and what goes: the last drawn goes first."""
        assert picos <= self.amount.picos, f"{picos} picos of a lease of {self.amount}"
        stays, back = burn(self.draws, picos=self.amount.picos - picos)
        freed = [
            replace(draw, amount=min(draw.amount, picos if draw.unit == "money" else tokens))
            for draw in self.budget_draws
        ]
        kept = [
            replace(draw, amount=draw.amount - gone.amount)
            for draw, gone in zip(self.budget_draws, freed, strict=True)
        ]
        amount = Money(self.amount.picos - picos, self.amount.currency)
        return replace(self, amount=amount, draws=stays, budget_draws=kept), back, freed
