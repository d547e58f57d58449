"""After a crash: every attempt that a dead gateway left open gets its event.

What was open is in the outbox, and in the books where a hold was placed in the very last moment.
What it used, the upstream's own log says; where that knows nothing, nothing is charged.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.billing.books import Books
from steelyard.billing.settlement_matrix import charged_usage
from steelyard.clock import Clock
from steelyard.errors import SteelyardError
from steelyard.eventlog.attempt_records import EventDraft, PendingEvent
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.closing import charge_for
from steelyard.gateway.event_draft import close_record, hold_of_attempt, unserved_draft
from steelyard.gateway.lease_recovery import LeaseRecovery
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.upstreams.base import (
    LoggedAttempt,
    Upstream,
    UpstreamFailed,
    UpstreamUnavailable,
)
from steelyard.ledger.hold import Hold
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import read_upstream_usage
from steelyard.metering.usage import NO_USAGE
from steelyard.metering.usage_event import OpenedRecord
from steelyard.timestamp import read_timestamp

log = structlog.get_logger()

ATTEMPTS_AT_ONCE = 1_000
LOOK_AGAIN_S = 0.5
CAUSE = "gateway_crashed"

_opened_decoder = msgspec.json.Decoder(OpenedRecord)


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """What earlier lives of this gateway left: open attempts, and leases with their last event in
    the outbox."""

    holds: Sequence[Hold]
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
        found = {attempt.id: hold_of_attempt(attempt) for attempt in self.outbox.left_open()}
        with self.books.write() as unit:
            placed = unit.open_holds(source_prefix=self.source_prefix)
        others = {hold.id: hold for hold in placed if hold.id not in found}
        # An attempt whose event is in the outbox was closed: the worker will settle it.
        for closed in self.outbox.events_among(others):
            del others[closed]
        return LeftOpen([*found.values(), *others.values()], self.leases.find())

    async def resolve(self, left: LeftOpen) -> None:
        """Write the events; while the disk fails they wait as every event does."""
        written: list[Hold] = []
        for upstream_name, part in _by_upstream(left.holds):
            logged = await self._logged(upstream_name, [hold.id for hold in part])
            drafts = [self._draft(hold, logged.get(hold.id)) for hold in part]
            pending = [self.outbox.append(draft) for draft in drafts]
            try:
                await anyio.to_thread.run_sync(_wait_for, pending, abandon_on_cancel=True)
            except EventLogUnavailable as failure:
                log.error("holds.not_resolved", reason=str(failure))
                return
            written += part
        if written:
            log.warning("holds.resolved_after_crash", count=len(written))
        await self.leases.end(left.leases, written)

    async def _logged(self, upstream_name: str, ids: list[str]) -> Mapping[str, LoggedAttempt]:
        upstream = next((one for one in self.upstreams if one.name == upstream_name), None)
        if upstream is None:
            return {}
        gives_up_at = anyio.current_time() + self.patience_s
        while True:
            try:
                return await upstream.logged_attempts(ids)
            except (UpstreamUnavailable, UpstreamFailed) as failure:
                if anyio.current_time() >= gives_up_at:
                    log.error("upstream_log.unavailable", upstream=upstream_name, count=len(ids))
                    return {}
                log.info("upstream_log.awaited", upstream=upstream_name, reason=str(failure))
            await anyio.sleep(LOOK_AGAIN_S)

    def _draft(self, hold: Hold, logged: LoggedAttempt | None) -> EventDraft:
        """The event of an attempt that its gateway could not close."""
        at = self.clock.now()
        if logged is None:
            return unserved_draft(hold, end_cause=CAUSE, at=at)
        try:
            return self._logged_draft(hold, logged)
        except (SteelyardError, msgspec.ValidationError) as error:
            log.error("upstream_log.unusable", event_id=hold.id, reason=str(error))
            return unserved_draft(hold, end_cause=CAUSE, at=at)

    def _logged_draft(self, hold: Hold, logged: LoggedAttempt) -> EventDraft:
        opened = _opened_decoder.decode(hold.opened)
        produced = read_upstream_usage(logged.usage) or NO_USAGE
        # Of a stream all that was produced was on its way to the client; of a whole answer nothing.
        delivered = produced if opened.is_streamed and produced.has_output else NO_USAGE
        meter = AnswerMeter(reported=produced, delivered=delivered, raw_usage=logged.usage)
        admitted_at = read_timestamp(opened.admitted_at)
        pinned = self.prices.pinned(opened.price_version, model=opened.model_served, at=admitted_at)
        charged = charged_usage(CAUSE, meter, policy=opened.disconnect_policy)
        usage, charge = charge_for(charged, pinned)
        if hold.lease_id is not None and charge.total.picos > hold.amount.picos:
            # It has grown since it was opened; its lease has what it grew by.
            hold = replace(hold, amount=charge.total)
        at = self.clock.now()
        record = close_record(
            opened,
            hold,
            meter=meter,
            usage=usage,
            amount=charge.total,
            end_cause=CAUSE,
            count_source=logged.count_source,
            at=at,
        )
        return EventDraft(hold.id, at, msgspec.structs.replace(record, output_digest=None))


def _wait_for(pending: Sequence[PendingEvent]) -> None:
    for event in pending:
        event.done.result()


def _by_upstream(holds: Sequence[Hold]) -> Iterator[tuple[str, list[Hold]]]:
    """Parts of the holds that one upstream can be asked about at once."""
    grouped: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        grouped[_opened_decoder.decode(hold.opened).upstream].append(hold)
    for upstream_name, group in grouped.items():
        for start in range(0, len(group), ATTEMPTS_AT_ONCE):
            yield upstream_name, group[start : start + ATTEMPTS_AT_ONCE]
