"""Makes the usage event of an attempt out of what was opened and how it ended."""

from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from steelyard.eventlog.attempt_records import EventDraft, OpenedAttempt
from steelyard.ledger.hold import Hold
from steelyard.metering.usage import NO_USAGE, Usage
from steelyard.metering.usage_event import (
    NO_UPSTREAM_USAGE,
    CountSource,
    DisconnectPolicy,
    EndCause,
    OpenedRecord,
    RecordEnding,
    join_record,
    write_meters,
)
from steelyard.money import Currency, Money, write_decimal
from steelyard.timestamp import write_timestamp


class Held(NamedTuple):
    """What an event tells of its hold, whose id is also the event's."""

    id: str
    picos: int
    lease_id: str | None


def held_by(hold: Hold) -> Held:
    return Held(hold.id, hold.amount.picos, hold.lease_id)


def opened_attempt(hold: Hold, *, bound_input: int, bound_output: int) -> OpenedAttempt:
    """What the outbox keeps of an attempt from its beginning."""
    return OpenedAttempt(
        id=hold.id,
        source=hold.source,
        payer_id=hold.payer_id,
        currency=hold.amount.currency,
        held=hold.amount.picos,
        placed_at=write_timestamp(hold.placed_at),
        bound_input=bound_input,
        bound_output=bound_output,
        opened=msgspec.Raw(hold.opened.encode()),
        lease_id=hold.lease_id,
    )


class OpenedTerms(msgspec.Struct, frozen=True, gc=False):
    """The part of an OpenedRecord that the closing of its attempt depends on."""

    organisation_id: str
    payer_id: str
    is_streamed: bool
    model_served: str
    upstream: str
    admitted_at: datetime
    price_version: str
    currency: str
    disconnect_policy: DisconnectPolicy = "delivered"
    batch_id: str | None = None


_terms_decoder = msgspec.json.Decoder(OpenedTerms)


def read_terms(opened: str | bytes) -> OpenedTerms:
    """What an OpenedRecord says of how its attempt is to be closed."""
    return _terms_decoder.decode(opened)


def unserved_draft(
    held: Held,
    opened: bytes,
    terms: OpenedTerms,
    *,
    end_cause: Literal["gateway_stopped", "gateway_crashed"],
    ended_at: str,
) -> EventDraft:
    """The event of an attempt that was held for and then never answered: nothing is charged."""
    return close_draft(
        held,
        opened,
        terms,
        usage=NO_USAGE,
        amount=Money(0, Currency(terms.currency)),
        end_cause=end_cause,
        count_source="none",
        output_digest=None,
        ended_at=ended_at,
    )


def close_draft(
    held: Held,
    opened: bytes,
    terms: OpenedTerms | OpenedRecord,
    *,
    usage: Usage,
    amount: Money,
    end_cause: EndCause,
    count_source: CountSource,
    output_digest: str | None,
    ended_at: str,
    raw_usage: bytes | None = None,
    first_token_at: datetime | None = None,
    saved: Money | None = None,
) -> EventDraft:
    """What was opened, as the JSON that was written of it, with how it ended."""
    charged = write_decimal(amount.picos)
    ending = RecordEnding(
        hold_id=held.id,
        held=write_decimal(held.picos),
        meters=write_meters(usage),
        upstream_usage=msgspec.Raw(raw_usage) if raw_usage else NO_UPSTREAM_USAGE,
        count_source=count_source if usage.counts else "none",
        end_cause=end_cause,
        first_token_at=write_timestamp(first_token_at) if first_token_at else None,
        ended_at=ended_at,
        amount=charged,
        output_digest=output_digest,
        lease_id=held.lease_id,
        saved=write_decimal(saved.picos) if saved is not None else None,
    )
    return EventDraft(
        held.id,
        terms.payer_id,
        terms.organisation_id,
        ended_at,
        charged,
        join_record(opened, ending),
    )
