"""Drafts of events out of records that are whole."""

import msgspec

from steelyard.eventlog.attempt_records import EventDraft
from steelyard.metering.usage_event import UsageRecord


def draft_of(event_id: str, record: UsageRecord) -> EventDraft:
    return EventDraft(
        event_id,
        record.payer_id,
        record.organisation_id,
        record.ended_at,
        record.amount,
        msgspec.json.encode(record),
    )


def empty_draft(event_id: str) -> EventDraft:
    """For whoever only looks at its id."""
    return EventDraft(event_id, "", "", "", "0", b"null")
