"""Opens the books: SQLite in a file, or PostgreSQL. One code for both."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)

from steelyard.errors import Failure

BUSY_TIMEOUT_S = 10.0
WRITES = "steelyard_writes"


class BooksUnavailable(Failure):
    """The database of the books does not answer."""

    code = "books_unavailable"


class BooksNotReady(Failure):
    """The books are of another version. Run 'steelyard init' with the services stopped."""

    code = "books_not_ready"


class BooksTooOld(BooksNotReady):
    """A program that was never released made these books. Move them away and run 'steelyard init'."""

    code = "books_too_old"


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def open_database(url: str) -> "Database":
    """Open the books without touching them; raises BooksUnavailable if the URL is no good."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise ArgumentError("it is sqlite:///FILE or postgresql://HOST/NAME")
        if parsed.get_backend_name() == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, connect_args=_connect_args(parsed.get_backend_name()))
    except (ArgumentError, NoSuchModuleError) as error:
        raise BooksUnavailable(f"{url!r} is not a database that we know: {error}") from error
    except ModuleNotFoundError as error:
        raise BooksUnavailable("PostgreSQL needs: pip install 'steelyard[postgres]'") from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return Database(engine)


class Database:
    """Units of work on the books."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{WRITES: True})
        # A reader must see one moment of the books, however long it looks.
        self._reader = engine.execution_options(
            isolation_level="SERIALIZABLE" if self.is_sqlite else "REPEATABLE READ"
        )

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Generator[Connection]:
        """All of the block happens, or nothing of it; it is durable when the block ends."""
        with _translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A snapshot: what the books say at one moment."""
        with _translated(), self._reader.begin() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise BooksUnavailable(f"the database of the books failed: {_cause_of(error)}") from error


def _cause_of(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig else str(error)


def _connect_args(backend: str) -> dict[str, Any]:
    if backend == "sqlite":
        return {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    return {"connect_timeout": 10}


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _: object) -> None:
        # We say BEGIN ourselves: the driver's own habit would start writes as reads.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
            "cache_size = -65536",
            # In pages. A large batch fills a few thousand: it should not pay for a checkpoint itself.
            "wal_autocheckpoint = 16384",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
