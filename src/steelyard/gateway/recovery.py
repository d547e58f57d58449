"""After a crash: every attempt that a dead gateway left open gets its event.

What was open is in the outbox, and in the books where a hold was placed in the very last moment.
What it used, the upstream's own log says; where that knows nothing, nothing is charged. However
many there are, only a few parts of them are in memory at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from steelyard.billing.books import Books
from steelyard.clock import Clock
from steelyard.collection import collection_paused
from steelyard.eventlog.attempt_records import OpenedAttempt, PendingRecord
from steelyard.eventlog.group_commit import Commit
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.crash_drafts import CrashDrafts, LeftAttempt, Part
from steelyard.gateway.event_draft import Held, opened_attempt
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.recovery_process import DraftingHere, DraftingProcess
from steelyard.gateway.upstreams.base import (
    LoggedAttempt,
    Upstream,
    UpstreamFailed,
    UpstreamUnavailable,
)

log = structlog.get_logger()

ATTEMPTS_AT_ONCE = 1_000
PARTS_READ_AHEAD = 1
LOOK_AGAIN_S = 0.5
# From so many on, a process of its own drafts their events.
PROCESS_FROM = 20_000


class _Upstream(msgspec.Struct, gc=False):
    upstream: str


class _Found(NamedTuple):
    """An attempt that was left open, and whom to ask about it."""

    attempt: LeftAttempt
    upstream: str


_upstream_decoder = msgspec.json.Decoder(_Upstream)


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """What earlier lives of this gateway left: open attempts, which are read as they are asked for,
    and leases with their last event in the outbox."""

    count: int
    attempts: Iterator[OpenedAttempt]
    leases: Mapping[str, str | None]


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
            count = await self._close_all(left, last_events)
        except* EventLogUnavailable as failures:
            log.error("holds.not_resolved", reason=str(failures.exceptions[0]))
        if count is None:
            return
        if count:
            log.warning("holds.resolved_after_crash", count=count)
        await self.leases.end(left.leases, written=last_events)

    async def _close_all(self, left: LeftOpen, last_events: dict[str, str]) -> int:
        """Draft and write everything; returns how many there were."""
        drafting = await anyio.to_thread.run_sync(self._begin_drafting, left.count)
        try:
            return await self._close_with(drafting, left.attempts, last_events)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(drafting.close)

    async def _close_with(
        self,
        drafting: DraftingHere | DraftingProcess,
        left: Iterator[OpenedAttempt],
        last_events: dict[str, str],
    ) -> int:
        """One part is written while the next is drafted, and the upstreams are asked about the one
        after that."""
        count = 0
        send, receive = anyio.create_memory_object_stream[Part](PARTS_READ_AHEAD)
        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(self._ask_about, left, drafting, send)
            before: Sequence[Commit[PendingRecord]] = ()
            async for part in receive:
                commits = await anyio.to_thread.run_sync(self._write_next, drafting)
                for held, _ in part.attempts:
                    if held.lease_id:
                        last_events[held.lease_id] = held.id
                await anyio.to_thread.run_sync(_wait_for, before, abandon_on_cancel=True)
                before = commits
                count += len(part.attempts)
            await anyio.to_thread.run_sync(_wait_for, before, abandon_on_cancel=True)
        return count

    async def _ask_about(
        self,
        left: Iterator[OpenedAttempt],
        drafting: DraftingHere | DraftingProcess,
        send: MemoryObjectSendStream[Part],
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
                part = Part([one.attempt for one in attempts], logged)
                await anyio.to_thread.run_sync(self._hand_over, part, drafting)
                await send.send(part)

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

    def _begin_drafting(self, count: int) -> DraftingHere | DraftingProcess:
        here = CrashDrafts(self.prices)
        return DraftingHere(here) if count < PROCESS_FROM else DraftingProcess(here)

    def _hand_over(self, part: Part, drafting: DraftingHere | DraftingProcess) -> None:
        with collection_paused():
            drafting.hand_over(part, at=self.clock.now())

    def _write_next(
        self, drafting: DraftingHere | DraftingProcess
    ) -> Sequence[Commit[PendingRecord]]:
        with collection_paused():
            return self.outbox.append_all(drafting.take())


def _as_grown(attempt: OpenedAttempt, placed: Mapping[str, int]) -> OpenedAttempt:
    """An attempt whose hold was opened small and has grown in the books since."""
    picos = placed.get(attempt.id)
    if picos is None:
        return attempt
    return msgspec.structs.replace(attempt, held=picos)


def _wait_for(commits: Sequence[Commit[PendingRecord]]) -> None:
    for commit in commits:
        commit.done.result()


def _read_some(left: Iterator[OpenedAttempt]) -> list[_Found]:
    with collection_paused():
        return [
            _Found(
                LeftAttempt(Held(one.id, one.held, one.lease_id), bytes(one.opened)),
                _upstream_decoder.decode(one.opened).upstream,
            )
            for one in islice(left, ATTEMPTS_AT_ONCE)
        ]


def _by_upstream(found: Sequence[_Found]) -> Mapping[str, list[str]]:
    """The ids that each upstream can be asked about at once."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for attempt, upstream in found:
        grouped[upstream].append(attempt.held.id)
    return grouped
