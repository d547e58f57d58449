"""Closing an attempt: one usage event, durable before the client sees the end."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from steelyard.billing.settlement_matrix import charged_usage
from steelyard.eventlog.attempt_records import EventDraft
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admitted
from steelyard.gateway.event_draft import close_record, held_by
from steelyard.gateway.holding import Holding
from steelyard.gateway.prices import PinnedPrices
from steelyard.gateway.workloads.answer import PricedUsage
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import CACHE_HIT, CALL, NO_USAGE, Usage
from steelyard.metering.usage_event import EndCause
from steelyard.money import Money
from steelyard.pricing.rating import Charge, rate_usage

CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Closed:
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


async def close_attempt(
    admitted: Admitted, meter: AnswerMeter, *, end_cause: EndCause, at: datetime, holding: Holding
) -> Closed:
    """Rate the attempt and record it; raises EventLogUnavailable if the disk does not take it.

    The event then waits in memory until the disk does. An answer that the client gets only now
    is withheld, so its event is amended to charge nothing.
    """
    closed, draft = _rate(admitted, meter, end_cause=end_cause, at=at)
    outbox = holding.outbox
    pending = holding.release(admitted.hold, draft, closed.usage, closed.total)
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await outbox.durable(pending)
    except TimeoutError as error:
        if not admitted.asked.is_streamed:
            _, amended = _rate(admitted, meter, end_cause="event_log_failed", at=at)
            if not outbox.amend(pending, amended):
                return closed
        raise EventLogUnavailable("the end of the answer cannot be recorded") from error
    return closed


def charge_for(usage: Usage, pinned: PinnedPrices) -> tuple[Usage, Charge]:
    """What a usage is charged as, and what that costs.

    Tokens of sound and images that the price book does not name cost what text costs.
    """
    # What came from the cache was answered before: it has its own price alone.
    is_answered = bool(usage.counts) and CACHE_HIT not in usage.counts
    usage = usage.folded(pinned.prices)
    if is_answered and CALL in pinned.prices:
        usage = usage.with_one(CALL)
    return usage, rate_usage(usage, prices=pinned.prices, currency=pinned.currency)


async def opening_durable(admitted: Admitted, outbox: Outbox) -> None:
    """Return when the opening of the attempt is on the disk; raises EventLogUnavailable."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await outbox.durable(admitted.opening)
    except TimeoutError as error:
        raise EventLogUnavailable("the beginning of the answer cannot be recorded") from error


def _rate(
    admitted: Admitted, meter: AnswerMeter, *, end_cause: EndCause, at: datetime
) -> tuple[Closed, EventDraft]:
    charged = charged_usage(end_cause, meter, policy=admitted.opened.disconnect_policy)
    usage, charge = charge_for(charged, admitted.pinned)
    kept = (meter.reported or NO_USAGE) if end_cause == "cache_hit" else None
    saved = charge_for(kept, admitted.pinned)[1].total if kept is not None else None
    record = close_record(
        admitted.opened,
        held_by(admitted.hold),
        meter=meter,
        usage=usage,
        amount=charge.total,
        end_cause=end_cause,
        count_source=admitted.upstream.count_source,
        output_digest=meter.output_digest(),
        at=at,
        saved=saved,
    )
    closed = Closed(admitted.hold.id, usage, charge, end_cause, kept, saved)
    return closed, EventDraft(admitted.hold.id, record)
