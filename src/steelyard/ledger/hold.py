"""A hold: money set aside before the work. It ends in exactly one way."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec

from steelyard.money import Money

HoldStatus = Literal["placed", "unresolved"]
BudgetUnit = Literal["money", "tokens"]

# What a draw names where it takes from the tenant's credit line instead of a grant.
CREDIT_LINE: Final = "credit-line"
# What a draw names for the tax and rounding of an invoice that neither grants nor credit line cover.
INVOICED: Final = "invoiced"


@dataclass(frozen=True, slots=True)
class Draw:
    """What is taken from one grant or from the credit line, or owed by an invoice."""

    grant_id: str
    picos: int

    def __post_init__(self) -> None:
        assert self.picos > 0, f"a draw is positive, got {self.picos}"


@dataclass(frozen=True, slots=True)
class BudgetDraw:
    """What a hold reserves in one window of one budget: picos of money, or tokens."""

    unit: BudgetUnit
    budget_id: str
    window: str
    amount: int


class HoldScope(msgspec.Struct, frozen=True):
    """Whose work a hold is for, and what its budgets are counted in."""

    organisation_id: str
    department_id: str
    project_id: str | None
    key_id: str
    tokens_max: int

    @property
    def ids(self) -> tuple[str, ...]:
        if self.project_id is None:
            return self.organisation_id, self.department_id, self.key_id
        return self.organisation_id, self.department_id, self.project_id, self.key_id


class Hold(msgspec.Struct, frozen=True):
    """The most that one attempt may cost; zero where the model is free. Shares the event's id.

    `draws` says which grants the amount came from, in the order in which they burn. A hold that was
    granted from a lease names it, has no draws of its own, and no row in the books.
    """

    id: str
    payer_id: str
    amount: Money
    source: str
    placed_at: datetime
    opened: str
    draws: Sequence[Draw] = ()
    budget_draws: Sequence[BudgetDraw] = ()
    status: HoldStatus = "placed"
    lease_id: str | None = None

    def __post_init__(self) -> None:
        assert self.amount.picos >= 0, f"a hold is not negative, got {self.amount}"


def burn(draws: Sequence[Draw], *, picos: int) -> tuple[list[Draw], list[Draw]]:
    """Split draws into what is spent and what goes back: the first drawn is the first spent."""
    spent: list[Draw] = []
    back: list[Draw] = []
    for draw in draws:
        taken = min(draw.picos, picos)
        picos -= taken
        if taken:
            spent.append(Draw(draw.grant_id, taken))
        if draw.picos > taken:
            back.append(Draw(draw.grant_id, draw.picos - taken))
    assert picos == 0, f"{picos} picos more are spent than were drawn"
    return spent, back


def unwind(draws: Sequence[Draw], *, picos: int) -> list[Draw]:
    """What a refund gives back: the last spent is the first returned."""
    _, back = burn(draws, picos=sum(draw.picos for draw in draws) - picos)
    return back


def write_draws(draws: Sequence[Draw]) -> str:
    """One line of text, as the books keep it: 'grant:picos,grant:picos'."""
    return ",".join(f"{draw.grant_id}:{draw.picos}" for draw in draws)


def read_draws(text: str) -> list[Draw]:
    """The draws that `write_draws` wrote."""
    parts = (part.rpartition(":") for part in text.split(",") if part)
    return [Draw(grant_id, int(picos)) for grant_id, _, picos in parts]


def write_budget_draws(draws: Sequence[BudgetDraw]) -> str:
    """One line of text: 'm:budget@window=picos,t:budget@window=tokens'."""
    return ",".join(f"{d.unit[0]}:{d.budget_id}@{d.window}={d.amount}" for d in draws)


def read_budget_draws(text: str) -> list[BudgetDraw]:
    """The draws that `write_budget_draws` wrote."""
    return [_read_budget_draw(part) for part in text.split(",") if part]


def _read_budget_draw(part: str) -> BudgetDraw:
    name, _, amount = part.rpartition("=")
    letter, _, place = name.partition(":")
    budget_id, _, window = place.partition("@")
    return BudgetDraw("money" if letter == "m" else "tokens", budget_id, window, int(amount))
