"""What became of attempts whose gateway died, as the events that tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
import structlog

from steelyard.billing.settlement_matrix import charged_usage
from steelyard.errors import SteelyardError
from steelyard.eventlog.attempt_records import EventDraft
from steelyard.gateway.closing import charge_for
from steelyard.gateway.event_draft import Held, OpenedTerms, close_draft, read_terms, unserved_draft
from steelyard.gateway.prices import PriceDirectory
from steelyard.gateway.upstreams.base import LoggedAttempt
from steelyard.metering.upstream_usage import read_upstream_usage
from steelyard.metering.usage import ENGINE_TIME, NO_USAGE
from steelyard.timestamp import write_timestamp

log = structlog.get_logger()

CAUSE: Final = "gateway_crashed"


class LeftAttempt(NamedTuple):
    """An attempt that was left open."""

    held: Held
    # An OpenedRecord as JSON.
    opened: bytes


class Part(NamedTuple):
    """Some attempts, with what their upstreams know of them."""

    attempts: Sequence[LeftAttempt]
    logged: Mapping[str, LoggedAttempt]


@dataclass(frozen=True, slots=True)
class CrashDrafts:
    """Drafts the events of attempts that their gateway could not close."""

    prices: PriceDirectory

    def draft_part(self, part: Part, *, at: datetime) -> Sequence[EventDraft]:
        logged, ended_at = part.logged, write_timestamp(at)
        return [
            self._draft(one, logged.get(one.held.id), ended_at=ended_at) for one in part.attempts
        ]

    def _draft(
        self, attempt: LeftAttempt, logged: LoggedAttempt | None, *, ended_at: str
    ) -> EventDraft:
        held, opened = attempt
        terms = read_terms(opened)
        if logged is not None:
            try:
                return self._logged_draft(attempt, terms, logged, ended_at=ended_at)
            except (SteelyardError, msgspec.ValidationError) as error:
                log.error("upstream_log.unusable", event_id=held.id, reason=str(error))
        return unserved_draft(held, opened, terms, end_cause=CAUSE, ended_at=ended_at)

    def _logged_draft(
        self, attempt: LeftAttempt, terms: OpenedTerms, logged: LoggedAttempt, *, ended_at: str
    ) -> EventDraft:
        held, opened = attempt
        produced = read_upstream_usage(logged.usage) or NO_USAGE
        # Of a stream all that was produced was on its way to the client; of a whole answer nothing.
        delivered = produced if terms.is_streamed and produced.has_output else NO_USAGE
        pinned = self.prices.pinned(
            terms.price_version,
            model=terms.model_served,
            at=terms.admitted_at,
            is_batch=terms.batch_id is not None,
        )
        charged = charged_usage(
            CAUSE, reported=produced, delivered=delivered, policy=terms.disconnect_policy
        )
        usage, charge = charge_for(charged, pinned)
        if held.lease_id is not None:
            # Of tokens no more was made than was held for: it has grown since it was opened, and
            # its lease has what it grew by. Time may have taken more than any hold.
            for_tokens = sum(line.picos for line in charge.lines if line.meter not in ENGINE_TIME)
            if for_tokens > held.picos:
                held = Held(held.id, for_tokens, held.lease_id)
        return close_draft(
            held,
            opened,
            terms,
            usage=usage,
            raw_usage=logged.usage,
            amount=charge.total,
            end_cause=CAUSE,
            count_source=logged.count_source,
            output_digest=None,
            ended_at=ended_at,
        )
