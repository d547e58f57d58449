"""A SQLite file of the gateway's own, beside the books: opened, locked, and its troubles told as one
failure. What stands in it, its store knows."""

import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from steelyard.errors import Failure

# Gateways of one machine may share a file: how long one waits for another's write.
BUSY_S: Final = 10.0

Row = tuple[Any, ...]


class LocalStore:
    """Every method raises `failure` when the file cannot be read or written."""

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        failure: type[Failure],
        survives: Literal["power loss", "kill"] = "power loss",
    ) -> None:
        self._path = path
        self._failure = failure
        self._lock = threading.Lock()
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
            )
            synchronous = "FULL" if survives == "power loss" else "NORMAL"
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
            self._connection.executescript(schema)

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        with self._translated(), self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> Row | None:
        """The only row, or the first; None where there is none."""
        found = self.rows(query, values)
        return found[0] if found else None

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        """One change of its own; how many rows it touched."""
        with self._translated(), self._lock:
            return self._connection.execute(statement, values).rowcount

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Reads and writes that belong together: all of them or none, and nobody between."""
        with self._translated(), self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._failure(f"{self._path.name} cannot be read or written: {error}") from error
