"""Runs of pipelines, and the answer of each of their calls, in SQLite in the data folder.

A thread of its own writes whatever has gathered in one commit, so that no run waits for the disk on
the event loop.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from steelyard.batch_queue import BatchQueue
from steelyard.billing.event_shares import shares_of
from steelyard.errors import Failure, Refusal
from steelyard.gateway.local_store import LocalStore
from steelyard.gateway.workloads.form import FormFile

RunStatus = Literal["running", "completed", "failed"]
BATCH_MAX: Final = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, key_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS calls (
    run_id TEXT NOT NULL, stage TEXT NOT NULL, place INTEGER NOT NULL, event_id TEXT NOT NULL,
    department TEXT NOT NULL, bearers BLOB NOT NULL, body BLOB NOT NULL, picos TEXT, tokens INTEGER,
    PRIMARY KEY (run_id, stage, place)
);
CREATE TABLE IF NOT EXISTS files (
    run_id TEXT NOT NULL, name TEXT NOT NULL, file_name TEXT NOT NULL, content_type TEXT NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (run_id, name)
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


class Bearer(msgspec.Struct, frozen=True):
    """A department that bears a part of a call."""

    name: str
    weight: int


class CallCost(NamedTuple):
    """What a call was charged, and for how many tokens."""

    picos: int
    tokens: int


class StoredCall(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a call, who pays for it and who bears it, by id; without a cost it may not have
    been charged yet."""

    run_id: str
    stage: str
    place: int
    event_id: str
    department: str
    body: bytes
    bearers: Mapping[str, Bearer] = {}
    cost: CallCost | None = None

    @property
    def picos(self) -> int:
        return self.cost.picos if self.cost else 0

    @property
    def tokens(self) -> int:
        return self.cost.tokens if self.cost else 0

    def shares(self) -> dict[str, int]:
        """What each department bears, by its name: as the books will split the event."""
        if not self.bearers:
            return {self.department: self.picos}
        weights = {name: bearer.weight for name, bearer in self.bearers.items()}
        shares = shares_of(self.event_id, picos=self.picos, weights=weights)
        return {self.bearers[share.department_id].name: share.picos for share in shares}


class _Write(NamedTuple):
    statement: str
    values: Sequence[object]
    done: "Future[None]"


class RunStore:
    """Every method raises RunsUnavailable when the disk fails, and so does what it returns."""

    def __init__(self, path: Path) -> None:
        self._file = LocalStore(path, _SCHEMA, failure=RunsUnavailable, survives="kill")
        self._queue = BatchQueue[_Write](batch_max=BATCH_MAX)
        self._thread = threading.Thread(target=self._write_all, name="run-store", daemon=True)
        self._thread.start()

    def put_run(self, run: StoredRun) -> "Future[None]":
        body = msgspec.json.encode(run)
        return self._write("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", run.id, run.key_id, body)

    def run(self, run_id: str, *, key_id: str) -> StoredRun:
        """A run of this key; raises RunNotFound."""
        query = "SELECT body FROM runs WHERE id = ? AND key_id = ?"
        rows = self._file.rows(query, (run_id, key_id))
        if not rows:
            raise RunNotFound(f"this key has no run {run_id[:100]!r} here")
        return msgspec.json.decode(rows[0][0], type=StoredRun)

    def put_file(self, run_id: str, name: str, file: FormFile) -> "Future[None]":
        row = run_id, name, file.name, file.content_type, file.content
        return self._write("INSERT INTO files VALUES (?, ?, ?, ?, ?)", *row)

    def file(self, run_id: str, name: str) -> FormFile:
        """A file that a run was given, as long as the run can be tried again."""
        query = "SELECT file_name, content_type, content FROM files WHERE run_id = ? AND name = ?"
        rows = self._file.rows(query, (run_id, name))
        assert rows, f"{run_id} was given {name}"
        return FormFile(*rows[0])

    def drop_files(self, run_id: str) -> "Future[None]":
        return self._write("DELETE FROM files WHERE run_id = ?", run_id)

    def put_call(self, call: StoredCall) -> "Future[None]":
        place = call.run_id, call.stage, call.place, call.event_id, call.department
        kept = msgspec.json.encode(call.bearers), call.body
        cost = (None, None) if call.cost is None else (str(call.cost.picos), call.cost.tokens)
        return self._write(
            "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *place, *kept, *cost
        )

    def calls(self, run_id: str) -> list[StoredCall]:
        """The calls that have ended, in the order of their places."""
        query = "SELECT * FROM calls WHERE run_id = ? AND picos IS NOT NULL ORDER BY stage, place"
        return [_call(row) for row in self._file.rows(query, (run_id,))]

    def resolve(self, charged: Callable[[Set[str]], Mapping[str, CallCost]]) -> None:
        """Finish the calls that an earlier life charged and did not tell, and drop the others."""
        query = "SELECT * FROM calls WHERE picos IS NULL"
        noted = [_call(row) for row in self._file.rows(query)]
        costs: Mapping[str, CallCost] = {}
        if noted:
            costs = charged({call.event_id for call in noted})
        for call in noted:
            if call.event_id in costs:
                self.put_call(msgspec.structs.replace(call, cost=costs[call.event_id]))
        self._write("DELETE FROM calls WHERE picos IS NULL").result()

    def close(self) -> None:
        """Once everything that was put is written."""
        self._queue.close()
        self._thread.join()
        self._file.close()

    def _write(self, statement: str, *values: object) -> "Future[None]":
        write = _Write(statement, values, Future())
        self._queue.put(write)
        return write.done

    def _write_all(self) -> None:
        while batch := self._queue.take():
            try:
                with self._file.transaction() as connection:
                    for write in batch:
                        connection.execute(write.statement, write.values)
            except RunsUnavailable as failure:
                for write in batch:
                    write.done.set_exception(failure)
            else:
                for write in batch:
                    write.done.set_result(None)


async def written(done: "Future[None]") -> None:
    """Return when a write is in the file; whoever stops waiting does not take it back."""
    await asyncio.shield(asyncio.wrap_future(done))


def _call(row: tuple[Any, ...]) -> StoredCall:
    run_id, stage, place, event_id, department, bearers, body, picos, tokens = row
    return StoredCall(
        run_id=run_id,
        stage=stage,
        place=place,
        event_id=event_id,
        department=department,
        bearers=msgspec.json.decode(bearers, type=dict[str, Bearer]),
        body=body,
        cost=None if picos is None else CallCost(int(picos), tokens),
    )
