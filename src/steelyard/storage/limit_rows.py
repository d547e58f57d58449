"""Rows of the table of limits: written and read, inside of somebody's unit of work."""

from typing import Any

from sqlalchemy import Connection, delete, insert, select

from steelyard.access.limits import LISTS, NO_LIMITS, NUMBERS, LimitScope, LimitSet
from steelyard.storage import schema


def write_limits(
    connection: Connection, scope: LimitScope, scope_id: str, limits: LimitSet
) -> None:
    """Keep what a place allows; what it allowed before is forgotten."""
    table = schema.limits
    connection.execute(delete(table).where(table.c.scope == scope, table.c.scope_id == scope_id))
    if limits == NO_LIMITS:
        return
    row: dict[str, Any] = {"scope": scope, "scope_id": scope_id}
    row |= {name: getattr(limits, name) for name in NUMBERS}
    row |= {name: "\n".join(getattr(limits, name)) for name in LISTS}
    connection.execute(insert(table), row)


def read_limits(connection: Connection) -> dict[tuple[LimitScope, str], LimitSet]:
    """What every place allows that allows anything."""
    return {
        (row.scope, row.scope_id): LimitSet(
            *(getattr(row, name) for name in NUMBERS),
            *(tuple(getattr(row, name).splitlines()) for name in LISTS),
        )
        for row in connection.execute(select(schema.limits))
    }
