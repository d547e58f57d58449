"""The store of budgets: set, ended, and where each of them stands."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import insert, select, update

from steelyard.access.budget import Budget, BudgetWindow
from steelyard.access.store import BudgetNotFound, BudgetTaken
from steelyard.storage import schema
from steelyard.storage.budget_unit import SELECT_BUDGETS, budget_of
from steelyard.storage.database import Database
from steelyard.storage.set_statement import SetStatement

_ALL_BUDGETS: Final = SetStatement(f"{SELECT_BUDGETS} ORDER BY o.name, b.scope, b.created_at, b.id")


@dataclass(frozen=True, slots=True)
class BudgetStanding:
    """A budget with its window of a moment, and the alerts that were raised in it."""

    budget: Budget
    window: str
    stands: BudgetWindow
    alerts: tuple[int, ...]


class SqlBudgetStore:
    """Implements BudgetStore; each call is a unit of work of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert_budget(self, budget: Budget) -> None:
        table, organisations = schema.budgets, schema.organisations
        row = {
            "id": budget.id,
            "organisation_id": budget.organisation_id,
            "scope": budget.scope,
            "scope_id": budget.scope_id,
            "unit": budget.unit,
            "period": budget.period,
            "amount": budget.amount,
            "is_hard": int(budget.is_hard),
            "created_at": budget.created_at,
            "ended_at": None,
        }
        same = select(table.c.id).filter_by(
            scope_id=budget.scope_id,
            unit=budget.unit,
            period=budget.period,
            is_hard=int(budget.is_hard),
            ended_at=None,
        )
        # Two that set the same budget at once come one after the other.
        lock = select(organisations.c.id).where(organisations.c.id == budget.organisation_id)
        with self._database.write() as connection:
            connection.execute(lock.with_for_update())
            taken = connection.execute(same).scalar_one_or_none()
            if taken is not None:
                raise BudgetTaken(
                    f"there is such a budget already; 'steelyard budget end {taken}' ends it"
                )
            connection.execute(insert(table), row)

    def end_budget(self, budget_id: str, *, at: datetime) -> Budget:
        table = schema.budgets
        with self._database.write() as connection:
            connection.execute(
                update(table)
                .where(table.c.id == budget_id, table.c.ended_at.is_(None))
                .values(ended_at=at)
            )
        for budget in self.budgets():
            if budget.id == budget_id:
                return budget
        raise BudgetNotFound(
            f"there is no budget {budget_id!r}; 'steelyard budget list' shows what there is"
        )

    def budgets(self) -> list[Budget]:
        with self._database.read() as connection:
            return [budget_of(row) for row in _ALL_BUDGETS.rows(connection, {})]

    def standings(self, *, at: datetime) -> list[BudgetStanding]:
        windows, alerts = schema.budget_windows, schema.budget_alerts
        with self._database.read() as connection:
            budgets = [budget_of(row) for row in _ALL_BUDGETS.rows(connection, {})]
            stands = {
                (row.budget_id, row.window_name): BudgetWindow(row.reserved, row.used)
                for row in connection.execute(select(windows))
            }
            raised: dict[tuple[str, str], list[int]] = defaultdict(list)
            for row in connection.execute(select(alerts).order_by(alerts.c.percent)):
                raised[row.budget_id, row.window_name].append(row.percent)
        return [
            BudgetStanding(
                budget, key[1], stands.get(key, BudgetWindow()), tuple(raised.get(key, ()))
            )
            for budget in budgets
            if budget.ended_at is None
            for key in [(budget.id, budget.window(at=at))]
        ]
