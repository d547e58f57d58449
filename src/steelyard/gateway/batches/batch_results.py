"""The results of a batch, on the disk as they come: output, errors, and a journal between them.

An answer is in the journal, and the journal on the disk, before its attempt is closed; it goes to the
output after. So once a line is charged its answer is on the disk, and a line whose answer was not
charged is asked again. A line is done when its result is on the disk.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from steelyard.eventlog.disk import SegmentFile
from steelyard.gateway.batches.result_writer import Record, ResultWriter, open_to_append

Document = dict[str, Any]
JOURNAL_SUFFIX: Final = ".journal"
# How long an answer that is about to be charged waits for a disk that fails.
NOTE_S: Final = 10.0
TOGETHER: Final = 64


class JournalEntry(msgspec.Struct):
    """An answer that may have been charged, under the id of its event."""

    line: int
    custom_id: str
    event_id: str
    body: msgspec.Raw


class _Told(NamedTuple):
    """A result on its way to a file."""

    path: Path
    line: int
    content: bytes


class _ResultLine(msgspec.Struct):
    id: str


_journal_decoder = msgspec.json.Decoder(JournalEntry)
_result_decoder = msgspec.json.Decoder(_ResultLine)
_usage_decoder = msgspec.json.Decoder(dict[str, Any] | None)
_body_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BatchResults:
    """The files of one batch that runs."""

    def __init__(
        self,
        batch_id: str,
        *,
        output: Path,
        errors: Path,
        gather_max: int = 1,
        open_file: Callable[[Path], SegmentFile] = open_to_append,
    ) -> None:
        self._done = bytearray()
        self.completed = self._read_back(output)
        self.failed = self._read_back(errors)
        self._output, self._errors = output, errors
        self._told: list[_Told] = []
        self._journal = output.with_name(batch_id + JOURNAL_SUFFIX)
        self._writer = ResultWriter(
            output, errors, self._journal, gather_max=gather_max, open_file=open_file
        )

    def is_done(self, line: int) -> bool:
        place, bit = divmod(line, 8)
        return place < len(self._done) and bool(self._done[place] >> bit & 1)

    async def note(self, entry: JournalEntry) -> None:
        """Keep an answer that is about to be charged; raises BatchesUnavailable if that cannot be."""
        noted = self._writer.put(self._journal, _line_of(entry))
        await self._writer.durable(noted, within_s=NOTE_S)

    def answered(self, line: int, custom_id: str, *, request_id: str, body: msgspec.Raw) -> None:
        """A line has its answer; it is done when that is on the disk."""
        response = {"status_code": 200, "request_id": request_id, "body": body}
        result = _result(line, custom_id, response, None)
        self._add(_Told(self._output, line, _line_of(result)))

    def refused(
        self, line: int, custom_id: str, *, response: Document | None, error: Document | None
    ) -> None:
        """A line will have no answer; it is done when that is on the disk."""
        result = _result(line, custom_id, response, error)
        self._add(_Told(self._errors, line, _line_of(result)))

    def flush(self) -> list[Record]:
        """Send to the disk what has been told."""
        told, self._told = self._told, []
        return [self._put(one) for one in told]

    async def wait(self) -> None:
        """Return when everything that was told is done; raises BatchesUnavailable if it will not
        be."""
        self.flush()
        await self._writer.flushed()

    def resolve(self, amounts: Callable[[Set[str]], Mapping[str, str]], *, currency: str) -> None:
        """Finish the lines that were charged and not told, forget the other answers, and close: for
        the events that there are, `amounts` says what they cost."""
        open_entries = {e.event_id: e for e in self._journaled() if not self.is_done(e.line)}
        found = amounts(open_entries.keys()) if open_entries else dict[str, str]()
        charged = {open_entries[event_id].line: open_entries[event_id] for event_id in found}
        for line, entry in charged.items():
            price = {"cost": found[entry.event_id], "currency": currency}
            body = _with_price(entry, {**price, "event_id": entry.event_id})
            self.answered(line, entry.custom_id, request_id=entry.event_id, body=body)
        told = self.flush()
        self._writer.close()
        for record in told:
            record.expect_written()
        os.truncate(self._journal, 0)

    def close(self, *, is_over: bool) -> None:
        """Write what is to be written; what is over needs no journal any more."""
        self.flush()
        self._writer.close()
        if is_over:
            self._journal.unlink(missing_ok=True)

    def _add(self, told: _Told) -> None:
        self._told.append(told)
        # Those that come close together share one sync; no line waits for it.
        if len(self._told) >= TOGETHER:
            self.flush()

    def _put(self, told: _Told) -> Record:
        return self._writer.put(told.path, told.content, written=lambda: self._count(told))

    def _count(self, told: _Told) -> None:
        self._mark(told.line)
        if told.path == self._output:
            self.completed += 1
        else:
            self.failed += 1

    def _journaled(self) -> Iterator[JournalEntry]:
        with self._journal.open("rb") as file:
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


def _result(
    line: int, custom_id: str, response: Document | None, error: Document | None
) -> Document:
    return {
        "id": f"batch_req_{line}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }


def _line_of(document: Any) -> bytes:
    return msgspec.json.encode(document) + b"\n"


def _with_price(entry: JournalEntry, price: Mapping[str, str]) -> msgspec.Raw:
    """The answer as it came, with what it cost."""
    fields = _body_decoder.decode(entry.body)
    usage = _usage_decoder.decode(fields.get("usage", b"null")) or dict[str, Any]()
    return msgspec.Raw(msgspec.json.encode({**fields, "usage": {**usage, **price}}))
