"""Many rows at once, straight to the driver: values go in as the database keeps them.

SQLite takes them as one prepared statement, PostgreSQL as one COPY.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table

from steelyard.storage.database import BooksUnavailable
from steelyard.storage.prepared import operational_error

Row = tuple[Any, ...]


class BulkInsert:
    """Inserts rows into all columns of a table, in the order in which the table has them."""

    def __init__(self, table: Table, *, leave_out: Collection[str] = ()) -> None:
        self.columns: Final = [c.name for c in table.columns if c.name not in leave_out]
        names = ", ".join(f'"{name}"' for name in self.columns)
        places = ", ".join("?" for _ in self.columns)
        self._insert = f"INSERT INTO {table.name} ({names}) VALUES ({places})"
        self._copy = f"COPY {table.name} ({names}) FROM STDIN"

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert them all; raises BooksUnavailable."""
        cursor = connection.connection.cursor()
        try:
            if connection.dialect.name == "sqlite":
                cursor.executemany(self._insert, rows)
                return
            copy: Any = cursor
            with copy.copy(self._copy) as target:
                for row in rows:
                    target.write_row(row)
        except operational_error(connection) as error:
            raise BooksUnavailable(f"the database of the books failed: {error}") from error
        finally:
            cursor.close()


class BulkSum:
    """Adds rows to a table of sums: new keys get a row, known ones grow."""

    def __init__(self, table: Table) -> None:
        keys = [column.name for column in table.primary_key.columns]
        sums = [column.name for column in table.columns if column.name not in keys]
        names = ", ".join(f'"{name}"' for name in (*keys, *sums))
        grown = ", ".join(f'"{n}" = {table.name}."{n}" + excluded."{n}"' for n in sums)
        head = f"INSERT INTO {table.name} ({names}) VALUES"
        tail = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {grown}"
        width = len(keys) + len(sums)
        self._sql = {
            "sqlite": f"{head} ({', '.join(['?'] * width)}) {tail}",
            "postgresql": f"{head} ({', '.join(['%s'] * width)}) {tail}",
        }

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add them all, in one order for everybody; raises BooksUnavailable."""
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self._sql[connection.dialect.name], sorted(rows))
        except operational_error(connection) as error:
            raise BooksUnavailable(f"the database of the books failed: {error}") from error
        finally:
            cursor.close()
