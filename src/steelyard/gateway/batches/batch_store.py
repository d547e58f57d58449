"""Files on the gateway's disk, and what is known of them and of batches, in SQLite beside them."""

from pathlib import Path

import msgspec

from steelyard.gateway.batches.records import (
    BatchesUnavailable,
    BatchNotFound,
    FileInUse,
    FileNotFound,
    StoredBatch,
    StoredFile,
)
from steelyard.gateway.local_store import LocalStore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, key_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, key_id TEXT NOT NULL, owner TEXT NOT NULL, is_over INTEGER NOT NULL,
    input_file_id TEXT NOT NULL, body BLOB NOT NULL
);
"""
_PUT_FILE = "INSERT OR REPLACE INTO files VALUES (?, ?, ?)"
_PUT_BATCH = "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?, ?)"
_PAGE = "SELECT body FROM {table} WHERE key_id = ? AND id < ? ORDER BY id DESC LIMIT ?"
_AFTER_ALL = "\uffff"

_encoder = msgspec.json.Encoder()
_files = msgspec.json.Decoder(StoredFile)
_batches = msgspec.json.Decoder(StoredBatch)


class BatchStore:
    """Every method raises BatchesUnavailable when the disk fails. Gateways of one machine share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = LocalStore(folder / "batches.db", _SCHEMA, failure=BatchesUnavailable)

    def path_of(self, file_id: str) -> Path:
        return self.folder / file_id

    def put_file(self, file: StoredFile) -> None:
        self._file.write(_PUT_FILE, (file.id, file.key_id, _encoder.encode(file)))

    def file(self, file_id: str, *, key_id: str) -> StoredFile:
        """A file of this key; raises FileNotFound."""
        row = self._file.row(
            "SELECT body FROM files WHERE id = ? AND key_id = ?", (file_id, key_id)
        )
        if row is None:
            raise FileNotFound(f"this key has no file {file_id[:100]!r} here")
        return _files.decode(row[0])

    def files(self, *, key_id: str, after: str | None, limit: int) -> list[StoredFile]:
        """The newest first."""
        rows = self._page("files", key_id, after, limit)
        return [_files.decode(row) for row in rows]

    def delete_file(self, file_id: str, *, key_id: str) -> None:
        """Raises FileNotFound, or FileInUse while a batch reads from it."""
        self.file(file_id, key_id=key_id)
        using = "SELECT body FROM batches WHERE input_file_id = ? AND is_over = 0"
        if self._file.row(using, (file_id,)) is not None:
            raise FileInUse
        self._file.write("DELETE FROM files WHERE id = ?", (file_id,))
        try:
            self.path_of(file_id).unlink(missing_ok=True)
        except OSError as error:
            raise BatchesUnavailable(f"a file cannot be deleted: {error}") from error

    def put_batch(self, batch: StoredBatch) -> None:
        row = (batch.id, batch.key_id, batch.owner, batch.is_over, batch.input_file_id)
        self._file.write(_PUT_BATCH, (*row, _encoder.encode(batch)))

    def batch(self, batch_id: str, *, key_id: str) -> StoredBatch:
        """A batch of this key; raises BatchNotFound."""
        row = self._file.row(
            "SELECT body FROM batches WHERE id = ? AND key_id = ?", (batch_id, key_id)
        )
        if row is None:
            raise BatchNotFound(f"this key has no batch {batch_id[:100]!r} here")
        return _batches.decode(row[0])

    def batches(self, *, key_id: str, after: str | None, limit: int) -> list[StoredBatch]:
        """The newest first."""
        rows = self._page("batches", key_id, after, limit)
        return [_batches.decode(row) for row in rows]

    def open_batches(self, owner: str) -> list[StoredBatch]:
        """What a gateway has begun and not ended, the oldest first."""
        query = "SELECT body FROM batches WHERE owner = ? AND is_over = 0 ORDER BY id"
        return [_batches.decode(row) for (row,) in self._file.rows(query, (owner,))]

    def close(self) -> None:
        self._file.close()

    def _page(self, table: str, key_id: str, after: str | None, limit: int) -> list[bytes]:
        query = _PAGE.format(table=table)
        return [row for (row,) in self._file.rows(query, (key_id, after or _AFTER_ALL, limit))]
