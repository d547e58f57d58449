"""Statements that run so often that they are compiled once and go straight to the driver.

SQLAlchemy still writes the SQL, the same statement for both databases; only its work at each
execution is left out, which costs more than the databases themselves do for a row or two.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ClauseElement

from steelyard.storage.database import BooksUnavailable

Parameters = Mapping[str, Any]

_DIALECTS: Final = {
    "sqlite": sqlite.dialect(paramstyle="named"),
    "postgresql": postgresql.psycopg.dialect(),
}


class PreparedStatement:
    """A statement with named parameters; values go to the driver as they are given."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, ClauseElement), f"not a statement: {statement!r}"
        self._sql = {
            name: str(statement.compile(dialect=dialect)) for name, dialect in _DIALECTS.items()
        }

    def rows(self, connection: Connection, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Run once and fetch everything; raises BooksUnavailable."""
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._sql[connection.dialect.name], parameters)
            return list(cursor.fetchall())
        except operational_error(connection) as error:
            raise BooksUnavailable(f"the database of the books failed: {error}") from error
        finally:
            cursor.close()

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """Run once; returns how many rows it touched. Raises BooksUnavailable."""
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._sql[connection.dialect.name], parameters)
            return int(cursor.rowcount)
        except operational_error(connection) as error:
            raise BooksUnavailable(f"the database of the books failed: {error}") from error
        finally:
            cursor.close()

    def run_each(self, connection: Connection, rows: Sequence[Parameters]) -> None:
        """Run once for each set of parameters; raises BooksUnavailable."""
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(self._sql[connection.dialect.name], rows)
        except operational_error(connection) as error:
            raise BooksUnavailable(f"the database of the books failed: {error}") from error
        finally:
            cursor.close()


def operational_error(connection: Connection) -> type[Exception]:
    """What the driver raises when the database does not do its work."""
    assert connection.dialect.dbapi is not None, "a connection has a driver"
    return connection.dialect.dbapi.OperationalError
