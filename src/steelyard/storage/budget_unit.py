"""Budgets, their windows and alerts, in a unit of work."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, update
from sqlalchemy.dialects import postgresql, sqlite

from steelyard.access.budget import Budget, BudgetWindow
from steelyard.billing.fund_books import BudgetAlert, WindowKey
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.ledger_unit import SqlLedgerUnit
from steelyard.storage.prepared import PreparedStatement
from steelyard.storage.set_statement import SetStatement, write_set
from steelyard.timestamp import read_timestamp

_windows = schema.budget_windows
_SCOPES: Final = ("organisation", "department", "project", "key")
SELECT_BUDGETS: Final = """SELECT b.id, b.organisation_id, b.scope, b.scope_id, b.unit, b.period,
    b.amount, b.is_hard, o.currency, o.time_zone, b.created_at, b.ended_at
    FROM budgets AS b JOIN organisations AS o ON o.id = b.organisation_id"""
_LIVE_BUDGETS = SetStatement(
    f"{SELECT_BUDGETS} WHERE b.scope_id IN :ids AND b.ended_at IS NULL ORDER BY b.created_at, b.id"
)
_BUDGETS = SetStatement(f"{SELECT_BUDGETS} WHERE b.id IN :ids")
_LOCK_WINDOWS = SetStatement(
    """SELECT budget_id, window_name, reserved, used FROM budget_windows
    WHERE budget_id IN :ids AND window_name IN :names""",
    locking='ORDER BY budget_id COLLATE "C", window_name COLLATE "C" FOR UPDATE',
)
_SET_WINDOW = PreparedStatement(
    update(_windows)
    .where(
        _windows.c.budget_id == bindparam("budget"), _windows.c.window_name == bindparam("window")
    )
    .values(reserved=bindparam("reserved_after"), used=bindparam("used_after"))
)


class SqlBudgetUnit(SqlLedgerUnit):
    """Implements BudgetBooks."""

    def live_budgets(self, scope_ids: Collection[str]) -> list[Budget]:
        found = [budget_of(row) for row in _LIVE_BUDGETS.rows_in(self.connection, scope_ids)]
        return sorted(found, key=lambda budget: _SCOPES.index(budget.scope))

    def budgets(self, budget_ids: Collection[str]) -> list[Budget]:
        return [budget_of(row) for row in _BUDGETS.rows_in(self.connection, budget_ids)]

    def lock_windows(self, keys: Collection[WindowKey]) -> dict[WindowKey, BudgetWindow]:
        found = self._read_windows(keys)
        missing = sorted(set(keys) - found.keys())
        if missing:
            self._open_windows(missing)
            found |= self._read_windows(missing)
        return found

    def set_windows(self, windows: Mapping[WindowKey, BudgetWindow]) -> None:
        rows = [
            {
                "budget": budget_id,
                "window": name,
                "reserved_after": window.reserved,
                "used_after": window.used,
            }
            for (budget_id, name), window in sorted(windows.items(), key=lambda item: item[0])
        ]
        _SET_WINDOW.run_each(self.connection, rows)

    def insert_alerts(self, alerts: Sequence[BudgetAlert], *, at: datetime) -> list[BudgetAlert]:
        # Their windows are locked, so nobody else raises the same ones right now.
        new: list[BudgetAlert] = []
        is_sqlite = self.connection.dialect.name == "sqlite"
        table = schema.budget_alerts
        insert = (sqlite if is_sqlite else postgresql).insert(table)
        statement = insert.on_conflict_do_nothing().returning(table.c.percent)
        for alert in alerts:
            row = {
                "budget_id": alert.budget.id,
                "window_name": alert.window,
                "percent": alert.percent,
                "raised_at": at,
            }
            if self.connection.execute(statement, row).one_or_none():
                new.append(alert)
        return new

    def _read_windows(self, keys: Collection[WindowKey]) -> dict[WindowKey, BudgetWindow]:
        names = write_set(self.connection, {name for _, name in keys})
        rows = _LOCK_WINDOWS.rows_in(self.connection, {key[0] for key in keys}, names=names)
        return {
            (budget_id, name): BudgetWindow(int(reserved), int(used))
            for budget_id, name, reserved, used in rows
            if (budget_id, name) in keys
        }

    def _open_windows(self, keys: Sequence[WindowKey]) -> None:
        """Another unit of work may be opening the same ones right now."""
        is_sqlite = self.connection.dialect.name == "sqlite"
        statement = (sqlite if is_sqlite else postgresql).insert(_windows).on_conflict_do_nothing()
        for budget_id, name in keys:
            row = {"budget_id": budget_id, "window_name": name, "reserved": 0, "used": 0}
            self.connection.execute(statement, row)


def budget_of(row: Sequence[Any]) -> Budget:
    """The budget of a row of `SELECT_BUDGETS`, as the driver reads it."""
    (
        budget_id,
        organisation_id,
        scope,
        scope_id,
        unit,
        period,
        amount,
        is_hard,
        currency,
        time_zone,
        created_at,
        ended_at,
    ) = row
    return Budget(
        id=budget_id,
        organisation_id=organisation_id,
        scope=scope,
        scope_id=scope_id,
        unit=unit,
        period=period,
        amount=int(amount),
        is_hard=bool(is_hard),
        currency=Currency(currency),
        time_zone=time_zone,
        created_at=read_timestamp(created_at),
        ended_at=read_timestamp(ended_at) if ended_at else None,
    )
