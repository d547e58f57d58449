"""Documents and their parts in a SQLite file of the gateway's own: what was asked, what is answered.

A part is `answered` before its event is written and `charged` after it; a crash between the two is
resolved when the gateway starts, by whether the event is there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from steelyard.errors import Failure, Refusal
from steelyard.gateway.local_store import LocalStore

DocumentState = Literal["running", "completed", "failed"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, key_id TEXT NOT NULL, owner TEXT NOT NULL, begun_at TEXT NOT NULL,
    state TEXT NOT NULL, wanted BLOB NOT NULL, complaint TEXT
);
CREATE TABLE IF NOT EXISTS parts (
    document_id TEXT NOT NULL, stage INTEGER NOT NULL, place INTEGER NOT NULL, source TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'todo', event_id TEXT, answer TEXT, cost TEXT, currency TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, PRIMARY KEY (document_id, stage, place)
);
"""


class DocumentsUnavailable(Failure):
    """Documents cannot be read or written now."""

    code = "documents_unavailable"


class DocumentOver(Refusal):
    """The document is at work, or has ended well: there is nothing to try again."""

    code = "document_over"


class Wanted(msgspec.Struct, frozen=True):
    """What is to be done with a document."""

    model: str
    task: str
    for_part: str
    for_answers: str
    tokens_max: int
    group_size: int


class StoredDocument(msgspec.Struct, frozen=True):
    """A document, without its text."""

    id: str
    key_id: str
    state: DocumentState
    wanted: Wanted
    complaint: str | None


class StoredPart(msgspec.Struct, frozen=True):
    """A part: what is asked, and what came of it."""

    stage: int
    place: int
    source: str
    state: Literal["todo", "answered", "charged"]
    event_id: str | None
    answer: str | None
    cost: str | None
    currency: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class DocumentStore:
    """Every method raises DocumentsUnavailable."""

    def __init__(self, path: Path, *, owner: str) -> None:
        self._owner = owner
        self._file = LocalStore(path, _SCHEMA, failure=DocumentsUnavailable)

    def close(self) -> None:
        self._file.close()

    def add(
        self, document_id: str, *, key_id: str, at: str, wanted: Wanted, sources: Sequence[str]
    ) -> None:
        packed = msgspec.json.encode(wanted)
        row = (document_id, key_id, self._owner, at, "running", packed, None)
        parts = [(document_id, 0, place, source) for place, source in enumerate(sources)]
        self._write(
            ("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)", [row]), (_ADD_PART, parts)
        )

    def add_stage(self, document_id: str, stage: int, sources: Sequence[str]) -> None:
        """Add the parts of a stage, unless they are there."""
        rows = [(document_id, stage, place, source) for place, source in enumerate(sources)]
        self._write((_ADD_PART, rows))

    def keep_answer(self, part: tuple[str, int, int], *, event_id: str, answer: str) -> None:
        statement = """UPDATE parts SET state = 'answered', event_id = ?, answer = ?
            WHERE document_id = ? AND stage = ? AND place = ?"""
        self._write((statement, [(event_id, answer, *part)]))

    def keep_charge(
        self, part: tuple[str, int, int], *, cost: str, currency: str, tokens: tuple[int, int]
    ) -> None:
        statement = """UPDATE parts SET state = 'charged', cost = ?, currency = ?,
            prompt_tokens = ?, completion_tokens = ?
            WHERE document_id = ? AND stage = ? AND place = ?"""
        self._write((statement, [(cost, currency, *tokens, *part)]))

    def forget_answer(self, part: tuple[str, int, int]) -> None:
        """Let a part be asked again: its first answer was not charged."""
        statement = """UPDATE parts SET state = 'todo', event_id = NULL, answer = NULL
            WHERE document_id = ? AND stage = ? AND place = ?"""
        self._write((statement, [part]))

    def end(self, document_id: str, state: DocumentState, complaint: str | None = None) -> None:
        statement = "UPDATE documents SET state = ?, complaint = ? WHERE id = ?"
        self._write((statement, [(state, complaint, document_id)]))

    def reopen(self, document_id: str) -> bool:
        """Take up a document that failed, as one of this gateway's; whether it had."""
        statement = """UPDATE documents SET state = 'running', complaint = NULL, owner = ?
            WHERE id = ? AND state = 'failed'"""
        return self._file.write(statement, (self._owner, document_id)) == 1

    def prune(self, begun_before: str) -> int:
        """Delete what was begun before a moment and does not run; how many documents."""
        old = "state != 'running' AND begun_at < ?"
        of_old = f"DELETE FROM parts WHERE document_id IN (SELECT id FROM documents WHERE {old})"
        with self._file.transaction() as documents:
            documents.execute(of_old, (begun_before,))
            return documents.execute(f"DELETE FROM documents WHERE {old}", (begun_before,)).rowcount

    def find(self, document_id: str) -> StoredDocument | None:
        rows = self._file.rows("SELECT * FROM documents WHERE id = ?", (document_id,))
        return _document(rows[0]) if rows else None

    def running(self) -> list[StoredDocument]:
        """Those of this gateway that are not over."""
        query = "SELECT * FROM documents WHERE owner = ? AND state = 'running' ORDER BY id"
        return [_document(row) for row in self._file.rows(query, (self._owner,))]

    def parts(self, document_id: str) -> list[StoredPart]:
        query = "SELECT * FROM parts WHERE document_id = ? ORDER BY stage, place"
        names = StoredPart.__struct_fields__
        rows = self._file.rows(query, (document_id,))
        return [msgspec.convert(dict(zip(names, row[1:], strict=True)), StoredPart) for row in rows]

    def answered(self) -> dict[str, tuple[str, int, int]]:
        """Parts of this gateway whose events may or may not be there, by the event."""
        query = """SELECT event_id, document_id, stage, place FROM parts WHERE state = 'answered'
            AND document_id IN (SELECT id FROM documents WHERE owner = ?)"""
        rows = self._file.rows(query, (self._owner,))
        found = msgspec.convert(rows, list[tuple[str, str, int, int]])
        return {event: (document, stage, place) for event, document, stage, place in found}

    def _write(self, *changes: tuple[str, Sequence[tuple[object, ...]]]) -> None:
        with self._file.transaction() as documents:
            for statement, rows in changes:
                documents.executemany(statement, rows)


_ADD_PART = "INSERT OR IGNORE INTO parts (document_id, stage, place, source) VALUES (?, ?, ?, ?)"


def _document(row: tuple[object, ...]) -> StoredDocument:
    document_id, key_id, _, _, state, wanted, complaint = row
    return msgspec.convert(
        {
            "id": document_id,
            "key_id": key_id,
            "state": state,
            "wanted": msgspec.json.decode(bytes(wanted)),  # pyright: ignore[reportArgumentType]
            "complaint": complaint,
        },
        StoredDocument,
    )
