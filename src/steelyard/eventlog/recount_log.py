"""The recount log: what a gateway counted again, on its own disk until the worker has it.

It is evidence and not money, so nothing waits for it: a record that the disk does not take is lost
and logged.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from steelyard.errors import Failure
from steelyard.ids import new_id
from steelyard.metering.recount import RecountRecord

SUFFIX: Final = ".recounts"
# Older records are in the books long since.
RECORDS_KEPT: Final = 100_000
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS log (log_id TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS recounts (position INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)",
)
T = TypeVar("T")


class RecountLogUnavailable(Failure):
    """The recount log cannot be written or read."""

    code = "recount_log_unavailable"


class RecountLog:
    """The only writer of one file. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = _translate(lambda: _open(path))

    def append(self, records: list[RecountRecord]) -> None:
        """Raises RecountLogUnavailable."""
        rows = [(msgspec.json.encode(record),) for record in records]
        _translate(lambda: self._write(rows))

    def close(self) -> None:
        self._connection.close()

    def _write(self, rows: list[tuple[bytes]]) -> None:
        with self._connection:
            self._connection.executemany("INSERT INTO recounts (body) VALUES (?)", rows)
            self._connection.execute(
                "DELETE FROM recounts WHERE position <= (SELECT max(position) FROM recounts) - ?",
                (RECORDS_KEPT,),
            )


class RecountLogReader:
    """Reads a log beside its writer."""

    def __init__(self, path: Path) -> None:
        self._connection = _translate(
            lambda: sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        )
        try:
            self.log_id: str = _translate(
                lambda: self._connection.execute("SELECT log_id FROM log").fetchone()[0]
            )
        except (RecountLogUnavailable, TypeError) as error:
            self._connection.close()
            raise RecountLogUnavailable(f"{path} is not a recount log yet") from error

    def read_after(self, position: int, *, limit: int) -> list[tuple[int, RecountRecord]]:
        """The next records with their positions; raises RecountLogUnavailable."""
        query = "SELECT position, body FROM recounts WHERE position > ? ORDER BY position LIMIT ?"
        rows = _translate(lambda: self._connection.execute(query, (position, limit)).fetchall())
        try:
            return [(row[0], msgspec.json.decode(row[1], type=RecountRecord)) for row in rows]
        except msgspec.DecodeError as error:
            raise RecountLogUnavailable(f"a recount cannot be read: {error}") from error

    def close(self) -> None:
        self._connection.close()


def find_recount_logs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        for statement in _SCHEMA:
            connection.execute(statement)
        if connection.execute("SELECT log_id FROM log").fetchone() is None:
            connection.execute("INSERT INTO log VALUES (?)", (new_id(),))
    return connection


def _translate(call: Callable[[], T]) -> T:
    try:
        return call()
    except (sqlite3.Error, OSError) as error:
        raise RecountLogUnavailable(f"the recount log failed: {error}") from error
