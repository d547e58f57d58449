"""Budgets in use: reserved with a hold, used when its event is settled, alerted at thresholds."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from steelyard.access.budget import ALERT_PERCENTS, Budget, BudgetWindow, budget_message
from steelyard.billing.fund_books import BudgetAlert, BudgetBooks, WindowKey
from steelyard.errors import Refusal
from steelyard.ledger.hold import BudgetDraw, BudgetUnit, Hold, HoldScope

log = structlog.get_logger()


class BudgetExceeded(Refusal):
    """A hard budget does not cover this request."""

    code = "budget_exceeded"

    def __init__(self, message: str, *, unit: BudgetUnit, left: int) -> None:
        super().__init__(message)
        self.unit: BudgetUnit = unit
        self.left = left


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What was used of what a hold had reserved: picos or tokens, as the draw says."""

    draw: BudgetDraw
    used: int


class BudgetReservations:
    """The budgets that a batch of holds asks; what it reserves is written by `save`."""

    def __init__(
        self, unit: BudgetBooks, *, placed: Sequence[tuple[Hold, HoldScope]], grown: Sequence[Hold]
    ) -> None:
        self._unit = unit
        self._by_scope: dict[str, list[Budget]] = defaultdict(list)
        for budget in unit.live_budgets({name for _, scope in placed for name in scope.ids}):
            self._by_scope[budget.scope_id].append(budget)
        draws = [draw for hold in grown for draw in hold.budget_draws]
        self._budgets = {budget.id: budget for budget in self._live(placed)}
        self._budgets |= {b.id: b for b in unit.budgets({draw.budget_id for draw in draws})}
        keys = {
            (budget.id, budget.window(at=hold.placed_at))
            for hold, scope in placed
            for budget in self._of(scope)
        }
        keys |= {(draw.budget_id, draw.window) for draw in draws}
        self._windows = unit.lock_windows(keys) if keys else {}
        self._touched: set[WindowKey] = set()

    def draws_for(self, hold: Hold, scope: HoldScope) -> list[BudgetDraw]:
        """What a new hold has to reserve; raises BudgetExceeded where a hard budget refuses."""
        draws: list[BudgetDraw] = []
        for budget in self._of(scope):
            wanted = hold.amount.picos if budget.unit == "money" else scope.tokens_max
            window = budget.window(at=hold.placed_at)
            draws.append(BudgetDraw(budget.unit, budget.id, window, wanted))
        self._check(draws, at=hold.placed_at)
        return draws

    def room_for(self, hold: Hold, scope: HoldScope) -> tuple[int | None, int | None]:
        """What is left of the tightest hard budgets of money and of tokens; None where none is."""
        room: dict[BudgetUnit, int] = {}
        for budget in self._of(scope):
            if budget.is_hard:
                window = self._windows[budget.id, budget.window(at=hold.placed_at)]
                left = max(0, budget.amount - window.used - window.reserved)
                room[budget.unit] = min(left, room.get(budget.unit, left))
        return room.get("money"), room.get("tokens")

    def renews_at(self, hold: Hold, scope: HoldScope) -> datetime | None:
        """When the first of the windows ends that this hold reserves in."""
        ends = [budget.renews_at(at=hold.placed_at) for budget in self._of(scope)]
        return min((end for end in ends if end is not None), default=None)

    def draws_to_grow(
        self, hold: Hold, *, picos: int, tokens: int, at: datetime
    ) -> list[BudgetDraw]:
        """What is missing of the reservations of a hold that grows to so much in all."""
        draws = [
            BudgetDraw(draw.unit, draw.budget_id, draw.window, max(0, wanted - draw.amount))
            for draw in hold.budget_draws
            for wanted in [picos if draw.unit == "money" else tokens]
        ]
        self._check(draws, at=at)
        return draws

    def reserve(self, draws: Iterable[BudgetDraw]) -> None:
        for draw in draws:
            key = draw.budget_id, draw.window
            self._windows[key].reserved += draw.amount
            self._touched.add(key)

    def save(self) -> None:
        if self._touched:
            self._unit.set_windows({key: self._windows[key] for key in self._touched})

    def _of(self, scope: HoldScope) -> list[Budget]:
        if not self._by_scope:
            return []
        return [budget for name in scope.ids for budget in self._by_scope.get(name, ())]

    def _live(self, placed: Sequence[tuple[Hold, HoldScope]]) -> list[Budget]:
        return [budget for _, scope in placed for budget in self._of(scope)]

    def _check(self, draws: Sequence[BudgetDraw], *, at: datetime) -> None:
        for draw in draws:
            budget = self._budgets[draw.budget_id]
            window = self._windows[draw.budget_id, draw.window]
            left = budget.amount - window.used - window.reserved
            if (
                budget.is_hard
                and budget.ended_at is None
                and draw.amount > 0
                and left < draw.amount
            ):
                message = budget_message(budget, window, wanted=draw.amount, at=at)
                raise BudgetExceeded(message, unit=budget.unit, left=max(0, left))


def grown_draws(before: Sequence[BudgetDraw], added: Sequence[BudgetDraw]) -> list[BudgetDraw]:
    """The reservations of a hold that has grown; both are of the same windows, in one order."""
    return [
        BudgetDraw(old.unit, old.budget_id, old.window, old.amount + new.amount)
        for old, new in zip(before, added, strict=True)
    ]


def settle_budget_draws(unit: BudgetBooks, ends: Sequence[BudgetUse], *, at: datetime) -> None:
    """What holds had reserved is used, or free again; thresholds that are passed raise alerts.

    Call it after the postings: windows are locked after accounts.
    """
    reserved: dict[WindowKey, int] = defaultdict(int)
    used: dict[WindowKey, int] = defaultdict(int)
    for end in ends:
        key = end.draw.budget_id, end.draw.window
        reserved[key] += end.draw.amount
        used[key] += end.used
    if not reserved:
        return
    windows = unit.lock_windows(reserved.keys())
    for key, window in windows.items():
        window.reserved -= reserved[key]
        window.used += used[key]
    unit.set_windows(windows)
    _raise_alerts(unit, {key: w for key, w in windows.items() if used[key]}, at=at)


def _raise_alerts(
    unit: BudgetBooks, windows: Mapping[WindowKey, BudgetWindow], *, at: datetime
) -> None:
    budgets = {budget.id: budget for budget in unit.budgets({key[0] for key in windows})}
    passed = [
        BudgetAlert(budgets[budget_id], name, percent, window.used)
        for (budget_id, name), window in windows.items()
        for percent in ALERT_PERCENTS
        if window.used * 100 >= budgets[budget_id].amount * percent
    ]
    for alert in unit.insert_alerts(passed, at=at):
        log.warning(
            "budget.threshold_passed",
            budget_id=alert.budget.id,
            scope=alert.budget.scope,
            scope_id=alert.budget.scope_id,
            window=alert.window,
            percent=alert.percent,
            used=alert.budget.write(alert.used),
            limit=alert.budget.write(alert.budget.amount),
        )
