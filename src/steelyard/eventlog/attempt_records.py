"""The two records that an outbox keeps of each attempt, before they have their place in it."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import cast

import msgspec

from steelyard.eventlog.group_commit import Commit
from steelyard.metering.usage_event import UsageEvent, UsageRecord, encode_event


class OpenedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that was admitted: what is held for it, and all that a later life must know.

    `opened` is an OpenedRecord as JSON, `held` picos; `bound_input` and `bound_output` are the most
    tokens that the upstream was asked for. `lease_id` names the lease that the hold was granted
    from; without one the hold has a row in the books.
    """

    id: str
    source: str
    payer_id: str
    currency: str
    held: int
    placed_at: str
    bound_input: int
    bound_output: int
    opened: msgspec.Raw
    lease_id: str | None = None


class EventDraft(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event before the outbox has given it its place in the source's chain.

    `record` is a UsageRecord as JSON; what the envelope repeats of it stands beside it.
    """

    id: str
    payer_id: str
    organisation_id: str
    ended_at: str
    amount: str
    record: bytes


@dataclass(slots=True)
class PendingEvent:
    """An event on its way to the disk, with the commit that brings it there."""

    draft: EventDraft
    commit: "Commit[PendingRecord]" = field(init=False)

    @property
    def done(self) -> "Future[None]":
        """Tells when it is on the disk."""
        return self.commit.done


@dataclass(slots=True)
class PendingOpening:
    """An opened attempt on its way to the disk, with the commit that brings it there."""

    attempt: OpenedAttempt
    commit: "Commit[PendingRecord]" = field(init=False)

    @property
    def done(self) -> "Future[None]":
        """Tells when it is on the disk."""
        return self.commit.done


PendingRecord = PendingEvent | PendingOpening


def write_event(draft: EventDraft, *, source: str, sequence: int, previous_hash: str) -> bytes:
    """The event in its place in the chain of its source."""
    return encode_event(
        UsageEvent(
            id=draft.id,
            source=source,
            sequence=str(sequence),
            previoushash=previous_hash,
            subject=draft.payer_id,
            partitionkey=draft.organisation_id,
            time=draft.ended_at,
            # It has been written already, and goes in as it is.
            data=cast("UsageRecord", msgspec.Raw(draft.record)),
        )
    )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(OpenedAttempt)


def encode_opened(attempt: OpenedAttempt) -> bytes:
    return _encoder.encode(attempt)


def decode_opened(body: bytes) -> OpenedAttempt:
    return _decoder.decode(body)
