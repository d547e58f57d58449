"""Kept answers in a SQLite file of their own, beside the books: bounded in age and in size."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import msgspec

from steelyard.clock import Clock
from steelyard.gateway.kept_answers import AnswersUnavailable, KeptAnswer, Place, StillRunning
from steelyard.gateway.local_store import LocalStore
from steelyard.timestamp import write_timestamp

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    owner_id TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, owner TEXT NOT NULL,
    begun_at TEXT NOT NULL, answer BLOB, PRIMARY KEY (owner_id, name)
);
CREATE INDEX IF NOT EXISTS answers_by_age ON answers (begun_at);
"""
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
        self._file = LocalStore(path, _SCHEMA, failure=AnswersUnavailable)
        # What an earlier life of this gateway was answering will never be over.
        self._file.write("DELETE FROM answers WHERE owner = ? AND answer IS NULL", (owner,))

    def begin(self, place: Place, *, digest: str) -> KeptAnswer | StillRunning | None:
        with self._file.transaction() as answers:
            found = self._find_or_begin(answers, place, digest)
        if found is None:
            return None
        known_digest, answer = found
        return StillRunning(known_digest) if answer is None else _decoder.decode(answer)

    def keep(self, place: Place, answer: KeptAnswer) -> None:
        self._file.write(_KEEP, (_encoder.encode(answer), *place))

    def give_up(self, place: Place) -> None:
        self._file.write(_GIVE_UP, place)

    def forget(self, place: Place) -> None:
        self._file.write(_FORGET, place)

    def close(self) -> None:
        self._file.close()

    def _find_or_begin(
        self, answers: sqlite3.Connection, place: Place, digest: str
    ) -> tuple[str, bytes | None] | None:
        now = self._clock.now()
        answers.execute(_EXPIRE, (write_timestamp(now - self._keep),))
        if answers.execute(_SIZE).fetchone()[0] > self._bytes_max:
            answers.execute(_DROP_OLDEST)
        found = answers.execute(_FIND, place).fetchone()
        if found is None:
            row = (*place, digest, self._owner, write_timestamp(now))
            answers.execute(_BEGIN, row)
        return found
