"""The outbox: what a gateway opened and closed, on its own disk, before the client sees it.

One writer thread makes durable whatever has gathered while the last commit ran, so that many
requests share one sync and a lone one waits for nobody.
"""

import threading
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from steelyard.eventlog.attempt_records import (
    EventDraft,
    OpenedAttempt,
    PendingEvent,
    PendingOpening,
    PendingRecord,
    decode_opened,
    encode_opened,
    write_event,
)
from steelyard.eventlog.disk import Disk, LocalDisk
from steelyard.eventlog.group_commit import Commit, CommitQueue
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.segment import read_batches
from steelyard.eventlog.segment_writer import SegmentWriter
from steelyard.metering.usage_event import EventCharge, hash_event

log = structlog.get_logger()

FIRST_PREVIOUS_HASH = "0" * 64
RETRY_S = 0.2
BATCH_MAX = 1_000
# How long an opening that nobody waits for may wait for a record that somebody does.
UNAWAITED_S = 0.002
# What attempts that are open may still write when new ones are refused already.
RESERVE_PART = 8
RESERVE_BYTES_MAX = 16 * 1024 * 1024


class _EventId(msgspec.Struct):
    id: str


class _Leased(msgspec.Struct):
    lease_id: str | None = None


class _LeasedEvent(msgspec.Struct):
    id: str
    data: _Leased


class _ChargedEvent(msgspec.Struct):
    id: str
    data: EventCharge


_charged_decoder = msgspec.json.Decoder(_ChargedEvent)
_id_decoder = msgspec.json.Decoder(_EventId)
_leased_decoder = msgspec.json.Decoder(_LeasedEvent)


@dataclass(frozen=True, slots=True)
class OutboxFigures:
    """How the outbox does: records that wait for the disk, events that were given up, bytes kept,
    and attempts that are open."""

    waiting: int
    lost: int
    bytes_kept: int
    open_attempts: int


class Outbox:
    """The only writer of one outbox folder; a second process that opens it is refused."""

    def __init__(
        self, path: Path, *, source: str, bytes_max: int, disk: Disk | None = None
    ) -> None:
        self.source = source
        self._writer = SegmentWriter(path, bytes_max=bytes_max, disk=disk or LocalDisk())
        self.log_id = self._writer.log_id
        self._sequence = 0
        self._previous_hash = FIRST_PREVIOUS_HASH
        # The segment that holds the opening of each attempt that is not closed.
        self._open: dict[str, int] = {}
        try:
            self._read_back()
        except BaseException:
            self._writer.close()
            raise
        # Where the attempts stand that earlier lives left open.
        self._left_in = {n: self._writer.segment_path(n) for n in sorted(set(self._open.values()))}
        self._queue = CommitQueue[PendingRecord](batch_max=BATCH_MAX)
        self._failure: str | None = None
        self._waiting_count = 0
        self._lost_count = 0
        self._is_closing = threading.Event()
        self._committing = threading.Lock()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise EventLogUnavailable while nothing new may be opened."""
        failure = self._failure
        writer = self._writer
        if failure is None and writer.size >= writer.bytes_max - _reserve(writer.bytes_max):
            failure = f"the outbox has reached its limit of {writer.bytes_max} bytes"
        if failure is not None:
            raise EventLogUnavailable(
                f"usage events cannot be written ({failure}); free space on the disk of the "
                "outbox, look at the worker, or raise the limit (STEELYARD_OUTBOX_BYTES_MAX)"
            )

    def open(self, attempt: OpenedAttempt, *, is_awaited: bool = True) -> PendingOpening:
        """Queue the opening of an attempt; the client may see its first byte once it is done. One
        that is not awaited goes to the disk with the next record that is, or a moment later."""
        pending = PendingOpening(attempt)
        wait_s = 0.0 if is_awaited else UNAWAITED_S
        pending.commit = self._queue.put(pending, may_wait_s=wait_s)
        return pending

    def append(self, draft: EventDraft) -> PendingEvent:
        """Queue an event. While the disk fails it waits in memory and is tried again."""
        pending = PendingEvent(draft)
        pending.commit = self._queue.put(pending)
        return pending

    def append_all(self, drafts: Sequence[EventDraft]) -> Sequence[Commit[PendingRecord]]:
        """Queue many events; the commits that they will be in."""
        return self._queue.put_all([PendingEvent(draft) for draft in drafts])

    def durable(self, pending: PendingRecord, *, timeout_s: float | None = None) -> Awaitable[None]:
        """Returns when it is on the disk; raises EventLogUnavailable if it never will be, and
        TimeoutError if that is not known in time."""
        return pending.commit.durable(timeout_s=timeout_s)

    def amend(self, pending: PendingEvent, draft: EventDraft) -> bool:
        """Replace an event that is still waiting; False if it is on the disk already."""
        assert draft.id == pending.draft.id, "an event keeps its id"
        with self._committing:
            if pending.done.done():
                return False
            pending.draft = draft
            return True

    def left_open(self) -> Iterator[OpenedAttempt]:
        """Attempts that earlier lives opened and that are not closed yet, read as they are asked
        for; for recovery. Raises EventLogUnavailable."""
        for number, path in self._left_in.items():
            try:
                content = memoryview(path.read_bytes())
            except OSError as error:
                raise EventLogUnavailable(f"the outbox {path.parent} failed: {error}") from error
            for batch in read_batches(content):
                for body in batch.opened:
                    attempt = decode_opened(body)
                    if self._open.get(attempt.id) == number:
                        yield attempt

    def open_among(self, ids: Collection[str]) -> set[str]:
        """Which of these attempts have their opening in the outbox, and no event."""
        return self._open.keys() & set(ids)

    def events_among(self, ids: Collection[str]) -> set[str]:
        """Which of these events are in the outbox; for recovery, before anything is appended."""
        wanted, found = set(ids), set[str]()
        if wanted:
            for batch in self._writer.batches():
                found.update(wanted.intersection(_ids_of(batch.events)))
        return found

    def amounts_of(self, ids: Collection[str]) -> dict[str, str]:
        """What those of these events cost that are in the outbox; before anything is appended."""
        return {event_id: charge.amount for event_id, charge in self.charges_of(ids).items()}

    def charges_of(self, ids: Collection[str]) -> dict[str, EventCharge]:
        """What those of these events charge that are in the outbox; before anything is appended."""
        wanted, found = set(ids), dict[str, EventCharge]()
        if wanted:
            for batch in self._writer.batches():
                events = (_charged_decoder.decode(body) for body in batch.events)
                found.update({e.id: e.data for e in events if e.id in wanted})
        return found

    def last_events_of(self, lease_ids: Collection[str]) -> dict[str, str]:
        """The last event in the outbox of each of these leases, where there is one; for recovery,
        before anything is appended."""
        wanted, last = set(lease_ids), dict[str, str]()
        if wanted:
            for batch in self._writer.batches():
                for body in batch.events:
                    event = _leased_decoder.decode(body)
                    if event.data.lease_id in wanted:
                        last[event.data.lease_id] = event.id
        return last

    def prune(self, settled_position: int, *, written_before: datetime) -> int:
        """Delete old segments whose events are all in the books up to this position, save those
        with an attempt that is open; returns how many."""
        with self._committing:
            needed = set(self._open.values())
            return self._writer.prune(
                settled=settled_position, needed=needed, written_before=written_before
            )

    def oldest_events(self) -> tuple[int, list[str]] | None:
        """The ids of the events that would be pruned next, and the position of the last of them."""
        with self._committing:
            oldest = self._writer.oldest()
        return (oldest[0], _ids_of(oldest[1])) if oldest else None

    def set_bytes_max(self, bytes_max: int) -> None:
        """Give the outbox more room, or less, from the next commit on."""
        with self._committing:
            self._writer.bytes_max = bytes_max

    def figures(self) -> OutboxFigures:
        waiting = self._waiting_count + len(self._queue)
        return OutboxFigures(waiting, self._lost_count, self._writer.size, len(self._open))

    def close(self) -> None:
        """Write what is queued, then let go of the folder."""
        self._is_closing.set()
        self._queue.close()
        self._thread.join()
        self._writer.close()

    def _read_back(self) -> None:
        try:
            for number, batch in self._writer.read_back():
                self._open.update(dict.fromkeys(_ids_of(batch.opened), number))
                if self._open:
                    for event_id in _ids_of(batch.events):
                        self._open.pop(event_id, None)
        except OSError as error:
            folder = self._writer.folder
            raise EventLogUnavailable(f"the outbox {folder} failed: {error}") from error

    def _write(self) -> None:
        while commit := self._queue.take():
            self._waiting_count = len(commit.items)
            while not self._commit_locked(commit):
                if self._is_closing.wait(RETRY_S):
                    commit.finish(self._give_up(commit.items))
                    break
            self._waiting_count = 0

    def _commit_locked(self, commit: Commit[PendingRecord]) -> bool:
        with self._committing:
            is_written = self._commit(commit.items)
            if is_written:
                # Under the lock: nobody may amend what is written and not known to be.
                commit.finish()
            return is_written

    def _commit(self, batch: list[PendingRecord]) -> bool:
        sequence, previous_hash = self._sequence, self._previous_hash
        events: list[bytes] = []
        opened: list[bytes] = []
        for pending in batch:
            if isinstance(pending, PendingOpening):
                opened.append(encode_opened(pending.attempt))
                continue
            sequence += 1
            body = write_event(
                pending.draft, source=self.source, sequence=sequence, previous_hash=previous_hash
            )
            previous_hash = hash_event(body)
            events.append(body)
        try:
            segment_number = self._writer.write(events, opened)
        except OSError as error:
            self._report_failure(str(error))
            return False
        self._sequence, self._previous_hash, self._failure = sequence, previous_hash, None
        self._note_open(batch, segment_number)
        return True

    def _note_open(self, batch: list[PendingRecord], segment_number: int) -> None:
        for pending in batch:
            if isinstance(pending, PendingOpening):
                self._open[pending.attempt.id] = segment_number
            else:
                self._open.pop(pending.draft.id, None)

    def _report_failure(self, reason: str) -> None:
        if self._failure is None:
            log.error("outbox.write_failed", source=self.source, reason=reason)
        self._failure = reason

    def _give_up(self, batch: list[PendingRecord]) -> EventLogUnavailable:
        """The process ends while the disk still fails: say which events are lost, never silently.

        Their holds stay open, and the next start resolves them.
        """
        for pending in batch:
            if isinstance(pending, PendingEvent):
                self._lost_count += 1
                draft = pending.draft
                log.critical("usage_event.lost", event_id=draft.id, amount=draft.amount)
        return EventLogUnavailable("the outbox closed before it could write")


def _ids_of(bodies: Collection[bytes]) -> list[str]:
    return [_id_decoder.decode(body).id for body in bodies]


def _reserve(bytes_max: int) -> int:
    return min(bytes_max // RESERVE_PART, RESERVE_BYTES_MAX)
