"""A hold: money set aside before the work. It ends in exactly one way."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from steelyard.money import Money

HoldStatus = Literal["placed", "settled", "suspended"]


@dataclass(frozen=True, slots=True)
class Hold:
    """The most that one attempt may cost; zero where the model is free. Shares the event's id."""

    id: str
    payer_id: str
    amount: Money
    source: str
    placed_at: datetime
    opened: str
    status: HoldStatus = "placed"

    def __post_init__(self) -> None:
        assert self.amount.picos >= 0, f"a hold is not negative, got {self.amount}"
