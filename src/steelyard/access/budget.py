"""Budgets: how much an organisation, a department, a project or a key may use in a window. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from steelyard.access.tenant import Organisation
from steelyard.errors import Refusal
from steelyard.ids import new_id
from steelyard.ledger.hold import BudgetUnit
from steelyard.money import Currency, write_decimal
from steelyard.time_zone import load_time_zone
from steelyard.timestamp import write_timestamp

BudgetScope = Literal["organisation", "department", "project", "key"]
BudgetPeriod = Literal["day", "month", "total"]

# Whoever may do something about it hears of it at these parts of a budget, in per cent.
ALERT_PERCENTS: Final = (50, 80, 100)


class BudgetMalformed(Refusal):
    """A budget is more than zero, of money or of tokens, per day, month or total."""

    code = "budget_malformed"


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of money or tokens per day, per month or in total, for one place of the tree.

    A hard budget refuses what would pass it; a soft one only counts. Days and months are those of
    the organisation's time zone.
    """

    id: str
    organisation_id: str
    scope: BudgetScope
    scope_id: str
    unit: BudgetUnit
    period: BudgetPeriod
    amount: int
    is_hard: bool
    currency: Currency
    time_zone: str
    created_at: datetime
    ended_at: datetime | None = None

    def window(self, *, at: datetime) -> str:
        """The name of the window that a moment falls into."""
        local = at.astimezone(load_time_zone(self.time_zone))
        names = {"day": local.strftime("%Y-%m-%d"), "month": local.strftime("%Y-%m")}
        return names.get(self.period, "total")

    def renews_at(self, *, at: datetime) -> datetime | None:
        """When the next window begins; None where there is no next one."""
        zone = load_time_zone(self.time_zone)
        midnight = at.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self.period == "day":
            return (midnight + timedelta(days=1)).astimezone(UTC)
        if self.period == "month":
            # 31 days after the first of a month is some day of the next.
            return (midnight.replace(day=1) + timedelta(days=31)).replace(day=1).astimezone(UTC)
        return None

    def write(self, amount: int) -> str:
        """An amount of this budget, for people."""
        if self.unit == "tokens":
            return f"{amount} tokens"
        return f"{write_decimal(amount)} {self.currency}"


@dataclass(slots=True)
class BudgetWindow:
    """What is reserved and used of one window of a budget."""

    reserved: int = 0
    used: int = 0


def set_budget(
    organisation: Organisation,
    *,
    scope: BudgetScope,
    scope_id: str,
    unit: BudgetUnit,
    amount: int,
    period: BudgetPeriod,
    is_hard: bool,
    at: datetime,
) -> Budget:
    """A new budget for a place in an organisation; raises BudgetMalformed."""
    if amount <= 0:
        raise BudgetMalformed
    return Budget(
        id=new_id(),
        organisation_id=organisation.id,
        scope=scope,
        scope_id=scope_id,
        unit=unit,
        period=period,
        amount=amount,
        is_hard=is_hard,
        currency=organisation.currency,
        time_zone=organisation.time_zone,
        created_at=at,
    )


def budget_message(budget: Budget, window: BudgetWindow, *, wanted: int, at: datetime) -> str:
    """Why a hard budget refuses, and from when on it does so no more."""
    renews_at = budget.renews_at(at=at)
    comes = f"it renews at {write_timestamp(renews_at)}" if renews_at else "it does not renew"
    per = "in total" if budget.period == "total" else f"per {budget.period}"
    return (
        f"the {budget.scope}'s budget of {budget.write(budget.amount)} {per} does not cover "
        f"{budget.write(wanted)}: used {budget.write(window.used)}, "
        f"reserved {budget.write(window.reserved)}; {comes}"
    )
