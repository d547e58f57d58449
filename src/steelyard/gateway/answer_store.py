"""Kept answers in a SQLite file of their own, beside the books: bounded in age and in size."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from steelyard.clock import Clock
from steelyard.gateway.kept_answers import AnswersUnavailable, KeptAnswer, Place, StillRunning
from steelyard.timestamp import write_timestamp

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    owner_id TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, owner TEXT NOT NULL,
    begun_at TEXT NOT NULL, answer BLOB, PRIMARY KEY (owner_id, name)
)
"""
_BY_AGE = "CREATE INDEX IF NOT EXISTS answers_by_age ON answers (begun_at)"
_FIND = "SELECT digest, answer FROM answers WHERE owner_id = ? AND name = ?"
_BEGIN = "INSERT INTO answers (owner_id, name, digest, owner, begun_at) VALUES (?, ?, ?, ?, ?)"
_KEEP = "UPDATE answers SET answer = ? WHERE owner_id = ? AND name = ?"
_GIVE_UP = "DELETE FROM answers WHERE owner_id = ? AND name = ? AND answer IS NULL"
_FORGET = "DELETE FROM answers WHERE owner_id = ? AND name = ? AND answer IS NOT NULL"
_EXPIRE = "DELETE FROM answers WHERE begun_at < ? AND answer IS NOT NULL"
_DROP_OLDEST = """
DELETE FROM answers WHERE rowid IN (
    SELECT rowid FROM answers WHERE answer IS NOT NULL ORDER BY begun_at LIMIT 100
)
"""
_SIZE = "SELECT COALESCE(SUM(LENGTH(answer)), 0) FROM answers"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeptAnswer)


class SqliteAnswerStore:
    """Implements AnswerStore; gateways of one machine share the file."""

    def __init__(
        self, path: Path, *, owner: str, clock: Clock, keep_s: float, bytes_max: int
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._keep = timedelta(seconds=keep_s)
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._connection = _translate(lambda: _open(path))
        # What an earlier life of this gateway was answering will never be over.
        self._write("DELETE FROM answers WHERE owner = ? AND answer IS NULL", (owner,))

    def begin(self, place: Place, *, digest: str) -> KeptAnswer | StillRunning | None:
        with self._lock:
            return _translate(lambda: self._begin(place, digest))

    def keep(self, place: Place, answer: KeptAnswer) -> None:
        self._write(_KEEP, (_encoder.encode(answer), *place))

    def give_up(self, place: Place) -> None:
        self._write(_GIVE_UP, place)

    def forget(self, place: Place) -> None:
        self._write(_FORGET, place)

    def close(self) -> None:
        self._connection.close()

    def _begin(self, place: Place, digest: str) -> KeptAnswer | StillRunning | None:
        now = self._clock.now()
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(_EXPIRE, (write_timestamp(now - self._keep),))
            if self._connection.execute(_SIZE).fetchone()[0] > self._bytes_max:
                self._connection.execute(_DROP_OLDEST)
            found = self._connection.execute(_FIND, place).fetchone()
            if found is None:
                row = (*place, digest, self._owner, write_timestamp(now))
                self._connection.execute(_BEGIN, row)
                return None
        known_digest, answer = found
        return StillRunning(known_digest) if answer is None else _decoder.decode(answer)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        def write() -> None:
            with self._connection:
                self._connection.execute(statement, values)

        with self._lock:
            _translate(write)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_SCHEMA)
    connection.execute(_BY_AGE)
    return connection


def _translate(call: Callable[[], T]) -> T:
    try:
        return call()
    except sqlite3.Error as error:
        raise AnswersUnavailable(f"kept answers cannot be read or written: {error}") from error
