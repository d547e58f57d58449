"""A process that drafts the events of a large recovery, while the gateway's own asks and writes.

It has no books, no outbox and no network. It ends when the gateway does.
"""

import gc
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any

import anyio
import msgspec
import structlog

from steelyard.clock import SystemClock
from steelyard.eventlog.attempt_records import EventDraft
from steelyard.gateway.crash_drafts import CrashDrafts, LeftAttempt, Part
from steelyard.gateway.event_draft import Held
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.snapshot import Snapshot
from steelyard.gateway.upstreams.base import LoggedAttempt
from steelyard.metering.usage_event import NO_UPSTREAM_USAGE, CountSource, OpenedRecord, UsageRecord
from steelyard.pricing.price_book import PriceVersion, canonical_document, read_canonical

log = structlog.get_logger()


class _Left(msgspec.Struct, array_like=True, gc=False):
    """One attempt on its way to the process; of one that no log knows, nobody counted."""

    id: str
    picos: int
    lease_id: str | None
    opened: OpenedRecord
    usage: msgspec.Raw
    count_source: CountSource | None


class _Letter(msgspec.Struct, array_like=True):
    """A part of a recovery, and the moment at which its events are written."""

    at: datetime
    attempts: list[_Left]


_encoder = msgspec.json.Encoder()
_letter_decoder = msgspec.json.Decoder(_Letter)
_records_decoder = msgspec.json.Decoder(list[UsageRecord])


class DraftingProcess:
    """One process at work on one part at a time. If it dies, what is left is drafted here."""

    def __init__(self, here: CrashDrafts) -> None:
        self._here = here
        self._is_dead = False
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        documents = {one.sha256: canonical_document(one.book) for one in here.prices.snapshot.copy}
        self._process = context.Process(
            target=_serve, args=(theirs, documents), name="drafting", daemon=True
        )
        self._process.start()
        theirs.close()

    def draft_part(self, part: Part, *, at: datetime) -> Sequence[EventDraft]:
        """Wait for the drafts of a part."""
        if self._is_dead:
            return self._here.draft_part(part, at=at)
        try:
            self._connection.send_bytes(_write_letter(part, at=at))
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            log.warning("recovery.drafting_process_died", reason=repr(error))
            self._is_dead = True
            return self._here.draft_part(part, at=at)
        return [EventDraft(record.hold_id, record) for record in _records_decoder.decode(answer)]

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)


def _write_letter(part: Part, *, at: datetime) -> bytes:
    lines: list[_Left] = []
    for held, opened in part.attempts:
        known = part.logged.get(held.id)
        usage = msgspec.Raw(known.usage) if known else NO_UPSTREAM_USAGE
        lines.append(_Left(*held, opened, usage, known.count_source if known else None))
    return _encoder.encode(_Letter(at, lines))


def _read_letter(letter: bytes) -> tuple[Part, datetime]:
    read = _letter_decoder.decode(letter)
    attempts = [
        LeftAttempt(Held(one.id, one.picos, one.lease_id), one.opened) for one in read.attempts
    ]
    logged = {
        one.id: LoggedAttempt(bytes(one.usage), one.count_source)
        for one in read.attempts
        if one.count_source is not None
    }
    return Part(attempts, logged), read.at


def _serve(connection: Connection, documents: Mapping[str, dict[str, Any]]) -> None:
    # The gateway decides when to stop; then the pipe ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Nothing here refers to itself in a circle, so there is nothing for the collector to find.
    gc.disable()
    versions = [PriceVersion(sha256, read_canonical(one)) for sha256, one in documents.items()]
    snapshot = Snapshot[Sequence[PriceVersion]](lambda: versions, lambda: 1, every_s=1.0)
    anyio.run(snapshot.refresh)
    drafts = CrashDrafts(PriceDirectory(snapshot, SystemClock()))
    while True:
        try:
            part, at = _read_letter(connection.recv_bytes())
        except EOFError:
            return
        records = [draft.record for draft in drafts.draft_part(part, at=at)]
        try:
            connection.send_bytes(_encoder.encode(records))
        except BrokenPipeError:
            return
