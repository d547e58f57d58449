"""After a crash: every attempt that a dead gateway left open gets its event.

What was open is in the outbox, and in the books where a hold was placed in the very last moment.
What it used, the upstream's own log says; where that knows nothing, nothing is charged. However
many there are, only a few parts of them are in memory at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from steelyard.billing.books import Books
from steelyard.billing.settlement_matrix import charged_usage
from steelyard.clock import Clock
from steelyard.collection import collection_paused
from steelyard.errors import SteelyardError
from steelyard.eventlog.attempt_records import EventDraft, OpenedAttempt, PendingEvent
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.closing import charge_for
from steelyard.gateway.event_draft import (
    Held,
    close_record,
    opened_attempt,
    read_opened,
    unserved_draft,
)
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.upstreams.base import (
    LoggedAttempt,
    Upstream,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import read_upstream_usage
from steelyard.metering.usage import ENGINE_TIME, NO_USAGE
from steelyard.metering.usage_event import OpenedRecord
from steelyard.timestamp import read_timestamp

log = structlog.get_logger()

ATTEMPTS_AT_ONCE = 1_000
PARTS_READ_AHEAD = 1
LOOK_AGAIN_S = 0.5
CAUSE = "gateway_crashed"


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """What earlier lives of this gateway left: open attempts, which are read as they are asked for,
    and leases with their last event in the outbox."""

    count: int
    attempts: Iterator[OpenedAttempt]
    leases: Mapping[str, str | None]


class _Attempt(NamedTuple):
    """An attempt that was left open."""

    held: Held
    opened: OpenedRecord


@dataclass(frozen=True, slots=True)
class _Part:
    """Some attempts, with what their upstreams know of them."""

    attempts: Sequence[_Attempt]
    logged: Mapping[str, LoggedAttempt]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Closes the attempts of earlier lives of this gateway, and then ends its leases."""

    books: Books
    leases: LeaseRecovery
    outbox: Outbox
    prices: PriceDirectory
    upstreams: Sequence[Upstream]
    clock: Clock
    source_prefix: str
    # How long an upstream that does not answer is asked again before nothing is charged.
    patience_s: float

    def find(self) -> LeftOpen:
        """What was left open; call it before the first request, in a thread."""
        outbox = self.outbox
        with self.books.write() as unit:
            placed = unit.open_hold_picos(source_prefix=self.source_prefix)
        others = set(placed) - outbox.open_among(placed)
        # An attempt whose event is in the outbox was closed: the worker settles it, or has put it
        # into quarantine.
        others -= outbox.events_among(others)
        only_in_books = self._read_attempts(sorted(others))
        left_open = (_as_grown(one, placed) for one in outbox.left_open())
        count = outbox.figures().open_attempts + len(only_in_books)
        return LeftOpen(count, chain(left_open, only_in_books), self.leases.find())

    def _read_attempts(self, ids: Sequence[str]) -> list[OpenedAttempt]:
        if not ids:
            return []
        with self.books.write() as unit:
            found = unit.read_holds(ids)
        return [
            opened_attempt(found[hold_id], bound_input=0, bound_output=0)
            for hold_id in ids
            if hold_id in found
        ]

    async def resolve(self, left: LeftOpen) -> None:
        """Write the events; while the disk fails they wait as every event does."""
        last_events: dict[str, str] = {}
        count: int | None = None
        try:
            count = await self._close_all(left.attempts, last_events)
        except* EventLogUnavailable as failures:
            log.error("holds.not_resolved", reason=str(failures.exceptions[0]))
        if count is None:
            return
        if count:
            log.warning("holds.resolved_after_crash", count=count)
        await self.leases.end(left.leases, written=last_events)

    async def _close_all(self, left: Iterator[OpenedAttempt], last_events: dict[str, str]) -> int:
        """One part is written while the upstreams are asked about the next; returns how many."""
        count = 0
        send, receive = anyio.create_memory_object_stream[_Part](PARTS_READ_AHEAD)
        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(self._ask_about, left, send)
            before: Sequence[PendingEvent] = ()
            async for part in receive:
                pending = await anyio.to_thread.run_sync(self._write, part)
                last_events.update(
                    (held.lease_id, held.id) for held, _ in part.attempts if held.lease_id
                )
                await anyio.to_thread.run_sync(_wait_for, before, abandon_on_cancel=True)
                before = pending
                count += len(pending)
            await anyio.to_thread.run_sync(_wait_for, before, abandon_on_cancel=True)
        return count

    async def _ask_about(
        self, left: Iterator[OpenedAttempt], send: MemoryObjectSendStream[_Part]
    ) -> None:
        gives_up_at: dict[str, float] = {}
        async with send:
            while attempts := await anyio.to_thread.run_sync(_read_some, left):
                logged: dict[str, LoggedAttempt] = {}
                for upstream_name, ids in _by_upstream(attempts).items():
                    gives_up_at.setdefault(upstream_name, anyio.current_time() + self.patience_s)
                    logged |= await self._logged(
                        upstream_name, ids, gives_up_at=gives_up_at[upstream_name]
                    )
                await send.send(_Part(attempts, logged))

    async def _logged(
        self, upstream_name: str, ids: Sequence[str], *, gives_up_at: float
    ) -> Mapping[str, LoggedAttempt]:
        known: dict[str, LoggedAttempt] = {}
        upstream = next((one for one in self.upstreams if one.name == upstream_name), None)
        while upstream and ids:
            reason = "still at work"
            try:
                logged = await upstream.logged_attempts(ids)
                known |= logged.known
                ids = logged.running
            except (UpstreamUnavailable, UpstreamFailed) as failure:
                reason = str(failure)
            if not ids:
                break
            if anyio.current_time() >= gives_up_at:
                log.error("upstream_log.unavailable", upstream=upstream_name, count=len(ids))
                break
            log.info("upstream_log.awaited", upstream=upstream_name, reason=reason)
            await anyio.sleep(LOOK_AGAIN_S)
        return known

    def _write(self, part: _Part) -> Sequence[PendingEvent]:
        at, logged = self.clock.now(), part.logged
        with collection_paused():
            drafts = [self._draft(one, logged.get(one.held.id), at=at) for one in part.attempts]
            return [self.outbox.append(draft) for draft in drafts]

    def _draft(
        self, attempt: _Attempt, logged: LoggedAttempt | None, *, at: datetime
    ) -> EventDraft:
        """The event of an attempt that its gateway could not close."""
        held = attempt.held
        if logged is None:
            return unserved_draft(held, attempt.opened, end_cause=CAUSE, at=at)
        try:
            return self._logged_draft(attempt, logged, at=at)
        except (SteelyardError, msgspec.ValidationError) as error:
            log.error("upstream_log.unusable", event_id=held.id, reason=str(error))
            return unserved_draft(held, attempt.opened, end_cause=CAUSE, at=at)

    def _logged_draft(
        self, attempt: _Attempt, logged: LoggedAttempt, *, at: datetime
    ) -> EventDraft:
        held, opened = attempt
        produced = read_upstream_usage(logged.usage) or NO_USAGE
        # Of a stream all that was produced was on its way to the client; of a whole answer nothing.
        delivered = produced if opened.is_streamed and produced.has_output else NO_USAGE
        meter = AnswerMeter(reported=produced, delivered=delivered, raw_usage=logged.usage)
        admitted_at = read_timestamp(opened.admitted_at)
        pinned = self.prices.pinned(
            opened.price_version,
            model=opened.model_served,
            at=admitted_at,
            is_batch=opened.batch_id is not None,
        )
        charged = charged_usage(CAUSE, meter, policy=opened.disconnect_policy)
        usage, charge = charge_for(charged, pinned)
        if held.lease_id is not None:
            # Of tokens no more was made than was held for: it has grown since it was opened, and
            # its lease has what it grew by. Time may have taken more than any hold.
            for_tokens = sum(line.picos for line in charge.lines if line.meter not in ENGINE_TIME)
            held = held._replace(picos=max(held.picos, for_tokens))
        record = close_record(
            opened,
            held,
            meter=meter,
            usage=usage,
            amount=charge.total,
            end_cause=CAUSE,
            count_source=logged.count_source,
            output_digest=None,
            at=at,
        )
        return EventDraft(held.id, record)


def _as_grown(attempt: OpenedAttempt, placed: Mapping[str, int]) -> OpenedAttempt:
    """An attempt whose hold was opened small and has grown in the books since."""
    picos = placed.get(attempt.id)
    if picos is None:
        return attempt
    return msgspec.structs.replace(attempt, held=picos)


def _wait_for(pending: Sequence[PendingEvent]) -> None:
    for event in pending:
        event.done.result()


def _read_some(left: Iterator[OpenedAttempt]) -> list[_Attempt]:
    with collection_paused():
        return [
            _Attempt(Held(one.id, one.held, one.lease_id), read_opened(one.opened))
            for one in islice(left, ATTEMPTS_AT_ONCE)
        ]


def _by_upstream(attempts: Sequence[_Attempt]) -> Mapping[str, list[str]]:
    """The ids that each upstream can be asked about at once."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for attempt in attempts:
        grouped[attempt.opened.upstream].append(attempt.held.id)
    return grouped
