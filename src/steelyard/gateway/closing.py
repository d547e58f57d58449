"""Closing an attempt: one usage event, durable before the client sees the end."""

import asyncio
import math
from dataclasses import dataclass, field
from datetime import datetime

import anyio
import msgspec

from steelyard.billing.settlement_matrix import charged_usage
from steelyard.eventlog.attempt_records import EventDraft, PendingEvent
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admitted
from steelyard.gateway.event_draft import close_draft, held_by
from steelyard.gateway.holding import Holding
from steelyard.gateway.prices import PinnedPrices
from steelyard.gateway.workloads.answer import PricedUsage
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import CACHE_HIT, CALL, NO_USAGE, Usage
from steelyard.metering.usage_event import EndCause
from steelyard.money import Money
from steelyard.pricing.rating import Charge, rate_usage
from steelyard.timestamp import write_timestamp

CLOSE_TIMEOUT_S = 5.0


class Closed(msgspec.Struct, frozen=True):
    """An attempt that has ended: what was used and what it costs."""

    event_id: str
    usage: Usage
    charge: Charge
    end_cause: EndCause
    # Of an answer from the cache: what was made when it was made, and what that would have cost.
    kept: Usage | None = None
    saved: Money | None = None

    @property
    def total(self) -> Money:
        return self.charge.total

    @property
    def priced(self) -> PricedUsage:
        usage = self.usage if self.kept is None else self.kept
        return PricedUsage(usage, self.total, self.event_id, self.saved)


@dataclass(slots=True)
class Closing:
    """An attempt that is being closed: its event is on its way to the disk.

    `closed` is what became of it, and says so for certain once `durable` has returned.
    """

    admitted: Admitted
    meter: AnswerMeter
    end_cause: EndCause
    at: datetime
    holding: Holding
    closed: Closed | EventLogUnavailable = field(init=False)
    _pending: PendingEvent = field(init=False)

    def __post_init__(self) -> None:
        """Rate the attempt, append its event and let go of its hold, all at once."""
        closed, draft = _rate(self.admitted, self.meter, end_cause=self.end_cause, at=self.at)
        hold = self.admitted.hold
        self._pending = self.holding.release(hold, draft, closed.usage, closed.total)
        self.closed = closed

    async def durable(self) -> None:
        """Return when the event is on the disk, or when it is known that the disk does not take it.

        It then waits in memory until the disk does. An answer that the client gets only now is
        withheld, so its event is amended to charge nothing.
        """
        try:
            await self._durable()
        except asyncio.CancelledError:
            # The server stops, or what the request is a part of: its record is waited for.
            with anyio.CancelScope(shield=True):
                await self._durable()
            if anyio.current_effective_deadline() > -math.inf:
                raise
            # A scope that was cancelled says so again, as soon as something else is waited for.

    async def _durable(self) -> None:
        outbox = self.holding.outbox
        try:
            await outbox.durable(self._pending, timeout_s=CLOSE_TIMEOUT_S)
        except TimeoutError:
            if not self.admitted.asked.is_streamed:
                end_cause: EndCause = "event_log_failed"
                _, amended = _rate(self.admitted, self.meter, end_cause=end_cause, at=self.at)
                if not outbox.amend(self._pending, amended):
                    return
            self.closed = EventLogUnavailable("the end of the answer cannot be recorded")
        except EventLogUnavailable as failure:
            self.closed = failure


def charge_for(usage: Usage, pinned: PinnedPrices) -> tuple[Usage, Charge]:
    """What a usage is charged as, and what that costs.

    Tokens of sound and images that the price book does not name cost what text costs.
    """
    # What came from the cache was answered before: it has its own price alone.
    is_answered = bool(usage.counts) and CACHE_HIT not in usage.counts
    usage = usage.folded(pinned.prices, known=pinned.prices.folds)
    if is_answered and CALL in pinned.prices:
        usage = usage.with_one(CALL)
    return usage, rate_usage(usage, prices=pinned.prices, currency=pinned.currency)


async def opening_durable(admitted: Admitted, outbox: Outbox) -> None:
    """Return when the opening of the attempt is on the disk; raises EventLogUnavailable."""
    try:
        await outbox.durable(admitted.opening, timeout_s=CLOSE_TIMEOUT_S)
    except TimeoutError as error:
        raise EventLogUnavailable("the beginning of the answer cannot be recorded") from error


def _rate(
    admitted: Admitted, meter: AnswerMeter, *, end_cause: EndCause, at: datetime
) -> tuple[Closed, EventDraft]:
    hold = admitted.hold
    charged = charged_usage(
        end_cause,
        reported=meter.reported,
        delivered=meter.delivered,
        policy=admitted.opened.disconnect_policy,
    )
    usage, charge = charge_for(charged, admitted.pinned)
    kept = (meter.reported or NO_USAGE) if end_cause == "cache_hit" else None
    saved = charge_for(kept, admitted.pinned)[1].total if kept is not None else None
    draft = close_draft(
        held_by(hold),
        hold.opened.encode(),
        admitted.opened,
        usage=usage,
        raw_usage=meter.raw_usage,
        first_token_at=meter.first_token_at,
        amount=charge.total,
        end_cause=end_cause,
        count_source=admitted.upstream.count_source,
        output_digest=meter.output_digest(),
        ended_at=write_timestamp(at),
        saved=saved,
    )
    closed = Closed(hold.id, usage, charge, end_cause, kept, saved)
    return closed, draft
