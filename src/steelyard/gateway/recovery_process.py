"""A process that drafts the events of a large recovery, while the gateway's own asks and writes.

It has no books, no outbox and no network. It ends when the gateway does.
"""

import gc
import multiprocessing
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from steelyard.metering.usage_event import CountSource
from steelyard.pricing.price_book import PriceVersion, canonical_document, read_canonical

log = structlog.get_logger()


class _Left(msgspec.Struct, array_like=True, gc=False):
    """One attempt on its way to the process; of one that no log knows, nobody counted."""

    id: str
    picos: int
    lease_id: str | None
    opened: bytes
    usage: bytes
    count_source: CountSource | None


class _Letter(msgspec.Struct, array_like=True):
    """A part of a recovery, and the moment at which its events are written."""

    at: datetime
    attempts: list[_Left]


# What is JSON already goes through as it is: in JSON, all of it would be read again to find its end.
_encoder = msgspec.msgpack.Encoder()
_letter_decoder = msgspec.msgpack.Decoder(_Letter)
_drafts_decoder = msgspec.msgpack.Decoder(list[EventDraft])


class DraftingProcess:
    """One process at work on the parts that were handed over, in their order. If it dies, what is
    left is drafted here.

    Handing over and taking are each for one thread: while one part is taken, the next is on its way.
    """

    def __init__(self, here: CrashDrafts) -> None:
        self._here = here
        self._is_dead = False
        self._handed: deque[tuple[Part, datetime]] = deque()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        documents = {one.sha256: canonical_document(one.book) for one in here.prices.snapshot.copy}
        self._process = context.Process(
            target=_serve, args=(theirs, documents), name="drafting", daemon=True
        )
        self._process.start()
        theirs.close()

    def hand_over(self, part: Part, *, at: datetime) -> None:
        """Give it one part more; returns when the process reads it."""
        self._handed.append((part, at))
        if not self._is_dead:
            try:
                self._connection.send_bytes(_write_letter(part, at=at))
            except OSError as error:
                self._note_death(error)

    def take(self) -> Sequence[EventDraft]:
        """Wait for the drafts of the part that was handed over first."""
        part, at = self._handed.popleft()
        if not self._is_dead:
            try:
                return _drafts_decoder.decode(self._connection.recv_bytes())
            except (EOFError, OSError) as error:
                self._note_death(error)
        return self._here.draft_part(part, at=at)

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)

    def _note_death(self, error: Exception) -> None:
        if not self._is_dead:
            log.warning("recovery.drafting_process_died", reason=repr(error))
        self._is_dead = True


class DraftingHere:
    """Drafts the parts that were handed over in this process."""

    def __init__(self, drafts: CrashDrafts) -> None:
        self._drafts = drafts
        self._handed: deque[tuple[Part, datetime]] = deque()

    def hand_over(self, part: Part, *, at: datetime) -> None:
        self._handed.append((part, at))

    def take(self) -> Sequence[EventDraft]:
        """The drafts of the part that was handed over first."""
        part, at = self._handed.popleft()
        return self._drafts.draft_part(part, at=at)

    def close(self) -> None:
        pass


def _write_letter(part: Part, *, at: datetime) -> bytes:
    lines: list[_Left] = []
    for held, opened in part.attempts:
        known = part.logged.get(held.id)
        usage, source = (known.usage, known.count_source) if known else (b"", None)
        lines.append(_Left(*held, opened, usage, source))
    return _encoder.encode(_Letter(at, lines))


def _read_letter(letter: bytes) -> tuple[Part, datetime]:
    read = _letter_decoder.decode(letter)
    attempts = [
        LeftAttempt(Held(one.id, one.picos, one.lease_id), one.opened) for one in read.attempts
    ]
    logged = {
        one.id: LoggedAttempt(one.usage, one.count_source)
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
    snapshot = Snapshot[Sequence[PriceVersion]](lambda: versions, lambda: 1)
    anyio.run(snapshot.refresh)
    drafts = CrashDrafts(PriceDirectory(snapshot, SystemClock()))
    # While one part is drafted, the one before is on its way: the gateway has much else to do.
    with ThreadPoolExecutor(1) as sender:
        sending: Future[None] | None = None
        while True:
            try:
                part, at = _read_letter(connection.recv_bytes())
                drafted = _encoder.encode(drafts.draft_part(part, at=at))
                if sending:
                    sending.result()
            except (EOFError, ConnectionError):
                # The gateway has gone, perhaps with a part that it has not taken.
                return
            sending = sender.submit(connection.send_bytes, drafted)
