"""Statements about a whole set of ids at once, written by hand and run straight on the driver."""

import re
from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Connection

from steelyard.storage.prepared import PreparedStatement

_IN_SET = re.compile(r"\bIN :(\w+)")
_PARAMETER = re.compile(r":(\w+)")


class SetStatement(PreparedStatement):
    """SQL with `:names`; `IN :name` takes a set of texts, however large, as one parameter.

    `locking` is added on PostgreSQL only: on SQLite a writer is alone anyway. `on_postgres` is what
    PostgreSQL runs instead.
    """

    def __init__(self, text: str, *, locking: str = "", on_postgres: str | None = None) -> None:
        text_there = f"{on_postgres or text} {locking}"
        self._sql = {
            "sqlite": _IN_SET.sub(r"IN (SELECT value FROM json_each(:\1))", text),
            "postgresql": _PARAMETER.sub(r"%(\1)s", _IN_SET.sub(r"= ANY(:\1)", text_there)),
        }

    def rows_in(
        self, connection: Connection, ids: Collection[str], **parameters: object
    ) -> list[tuple[Any, ...]]:
        """Run for the set named `ids` and fetch everything; an empty set asks nobody."""
        if not ids:
            return []
        return self.rows(connection, {"ids": write_set(connection, ids), **parameters})

    def run_in(self, connection: Connection, ids: Collection[str]) -> int:
        """Run for the set named `ids`; returns how many rows it touched."""
        return self.run(connection, {"ids": write_set(connection, ids)}) if ids else 0


def write_set(connection: Connection, ids: Collection[str]) -> str | list[str]:
    """A set of texts as the driver takes it."""
    ordered = sorted(ids)
    is_sqlite = connection.dialect.name == "sqlite"
    return msgspec.json.encode(ordered).decode() if is_sqlite else ordered
