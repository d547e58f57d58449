"""Runs of pipelines, and the answer of each of their calls, in SQLite in the data folder."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, Literal

import msgspec

from steelyard.errors import Failure, Refusal
from steelyard.gateway.local_store import LocalStore

RunStatus = Literal["running", "completed", "failed"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, key_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    run_id TEXT NOT NULL, stage TEXT NOT NULL, place INTEGER NOT NULL, event_id TEXT NOT NULL,
    department TEXT NOT NULL, body BLOB NOT NULL, picos TEXT, PRIMARY KEY (run_id, stage, place)
);
"""


class RunNotFound(Refusal):
    """This key has no such run here."""

    code = "run_not_found"


class RunsUnavailable(Failure):
    """Runs of pipelines cannot be read or written now."""

    code = "runs_unavailable"


class StoredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run: what it was given, and how far it is. `life` counts how often it was taken up."""

    id: str
    key_id: str
    pipeline: str
    definition: str
    input: dict[str, Any]
    created_at: int
    status: RunStatus = "running"
    life: int = 1
    error: dict[str, str] | None = None


class StoredCall(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a call; without `picos` it may not have been charged yet."""

    run_id: str
    stage: str
    place: int
    event_id: str
    department: str
    body: bytes
    picos: int | None = None


class RunStore:
    """Every method raises RunsUnavailable when the disk fails."""

    def __init__(self, path: Path) -> None:
        self._file = LocalStore(path, _SCHEMA, failure=RunsUnavailable, survives="kill")

    def put_run(self, run: StoredRun) -> None:
        body = msgspec.json.encode(run)
        self._file.write("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (run.id, run.key_id, body))

    def run(self, run_id: str, *, key_id: str) -> StoredRun:
        """A run of this key; raises RunNotFound."""
        query = "SELECT body FROM runs WHERE id = ? AND key_id = ?"
        rows = self._file.rows(query, (run_id, key_id))
        if not rows:
            raise RunNotFound(f"this key has no run {run_id[:100]!r} here")
        return msgspec.json.decode(rows[0][0], type=StoredRun)

    def put_call(self, call: StoredCall) -> None:
        place = (call.run_id, call.stage, call.place, call.event_id, call.department, call.body)
        picos = None if call.picos is None else str(call.picos)
        self._file.write(
            "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", (*place, picos)
        )

    def calls(self, run_id: str) -> list[StoredCall]:
        """The calls that have ended, in the order of their places."""
        query = "SELECT * FROM calls WHERE run_id = ? AND picos IS NOT NULL ORDER BY stage, place"
        return [_call(row) for row in self._file.rows(query, (run_id,))]

    def resolve(self, charged: Callable[[Set[str]], dict[str, int]]) -> None:
        """Finish the calls that an earlier life charged and did not tell, and drop the others."""
        noted = [
            _call(row) for row in self._file.rows("SELECT * FROM calls WHERE picos IS NULL", ())
        ]
        amounts = charged({call.event_id for call in noted}) if noted else {}
        for call in noted:
            if call.event_id in amounts:
                self.put_call(msgspec.structs.replace(call, picos=amounts[call.event_id]))
        self._file.write("DELETE FROM calls WHERE picos IS NULL", ())

    def close(self) -> None:
        self._file.close()


def _call(row: tuple[Any, ...]) -> StoredCall:
    run_id, stage, place, event_id, department, body, picos = row
    return StoredCall(
        run_id=run_id,
        stage=stage,
        place=place,
        event_id=event_id,
        department=department,
        body=body,
        picos=None if picos is None else int(picos),
    )
