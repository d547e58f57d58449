"""The results of a batch, on the disk as they come: output, errors, and a journal between them.

An answer goes to the journal before its attempt is closed, and to the output after. So once a line
is charged its answer is on the disk, and a line whose answer was not charged is asked again.
"""

from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

Document = dict[str, Any]
JOURNAL_SUFFIX: Final = ".journal"


class JournalEntry(msgspec.Struct):
    """An answer that may have been charged, under the id of its event."""

    line: int
    custom_id: str
    event_id: str
    body: msgspec.Raw


class _ResultLine(msgspec.Struct):
    id: str


_journal_decoder = msgspec.json.Decoder(JournalEntry)
_result_decoder = msgspec.json.Decoder(_ResultLine)
_usage_decoder = msgspec.json.Decoder(dict[str, Any] | None)
_body_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BatchResults:
    """The files of one batch that runs."""

    def __init__(self, batch_id: str, *, output: Path, errors: Path) -> None:
        self._batch_id = batch_id
        self._done = bytearray()
        self.completed = self._read_back(output)
        self.failed = self._read_back(errors)
        self._output = output.open("ab")
        self._errors = errors.open("ab")
        self._journal_path = output.with_name(batch_id + JOURNAL_SUFFIX)
        self._journal = self._journal_path.open("ab")

    def is_done(self, line: int) -> bool:
        place, bit = divmod(line, 8)
        return place < len(self._done) and bool(self._done[place] >> bit & 1)

    def note(self, entry: JournalEntry) -> None:
        """Keep an answer that is about to be charged."""
        _append(self._journal, entry)

    def answered(self, line: int, custom_id: str, *, request_id: str, body: msgspec.Raw) -> None:
        """A line has its answer."""
        response = {"status_code": 200, "request_id": request_id, "body": body}
        _append(self._output, self._result(line, custom_id, response, None))
        self._mark(line)
        self.completed += 1

    def refused(
        self, line: int, custom_id: str, *, response: Document | None, error: Document | None
    ) -> None:
        """A line will have no answer."""
        _append(self._errors, self._result(line, custom_id, response, error))
        self._mark(line)
        self.failed += 1

    def resolve(self, charged: Callable[[Set[str]], Set[str]]) -> None:
        """Finish the lines that were charged and not told, and forget the other answers."""
        open_entries = {e.event_id: e for e in self._journaled() if not self.is_done(e.line)}
        for event_id in charged(open_entries.keys()) if open_entries else ():
            entry = open_entries[event_id]
            if not self.is_done(entry.line):
                body = _with_event(entry)
                self.answered(entry.line, entry.custom_id, request_id=event_id, body=body)
        self._output.flush()
        self._journal.truncate(0)

    def close(self, *, is_over: bool) -> None:
        for file in (self._output, self._errors, self._journal):
            file.close()
        if is_over:
            self._journal_path.unlink(missing_ok=True)

    def _result(
        self, line: int, custom_id: str, response: Document | None, error: Document | None
    ) -> Document:
        return {
            "id": f"batch_req_{line}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }

    def _journaled(self) -> Iterator[JournalEntry]:
        with self._journal_path.open("rb") as file:
            for raw in file:
                # The last one may be torn: then its attempt was not closed.
                if raw.endswith(b"\n"):
                    yield _journal_decoder.decode(raw)

    def _read_back(self, path: Path) -> int:
        """Mark what is there as done, and cut off a line that was torn; how many there are."""
        count = whole = 0
        path.touch()
        with path.open("rb+") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                whole += len(raw)
                count += 1
                name = _result_decoder.decode(raw).id
                self._mark(int(name.removeprefix("batch_req_")))
            file.truncate(whole)
        return count

    def _mark(self, line: int) -> None:
        place, bit = divmod(line, 8)
        if place >= len(self._done):
            self._done.extend(bytes(place + 1 - len(self._done)))
        self._done[place] |= 1 << bit


def _append(file: BinaryIO, document: Any) -> None:
    file.write(msgspec.json.encode(document) + b"\n")
    # To the system at once: a killed process loses nothing of it.
    file.flush()


def _with_event(entry: JournalEntry) -> msgspec.Raw:
    """The answer as it came, with the event that tells its price."""
    fields = _body_decoder.decode(entry.body)
    usage = _usage_decoder.decode(fields.get("usage", b"null")) or dict[str, Any]()
    usage["event_id"] = entry.event_id
    return msgspec.Raw(msgspec.json.encode({**fields, "usage": usage}))
