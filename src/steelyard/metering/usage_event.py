"""The usage event: one immutable fact per attempt, as CloudEvents 1.0 JSON.

Counts and amounts are decimal strings, since JSON numbers lose whole numbers above 2^53.
Prompts and answers are never in it.
"""

import hashlib
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from steelyard.metering.usage import Usage

EVENT_TYPE: Final = "steelyard.usage.v1"

EndCause = Literal[
    "completed",
    "stopped_by_limit",
    "hold_growth_denied",
    "cache_hit",
    "client_left_before_first_token",
    "client_left",
    "upstream_refused",
    "upstream_failed_before_first_token",
    "upstream_failed",
    "usage_missing",
    "gateway_stopped",
    "gateway_crashed",
    "event_log_failed",
]
# What a client that leaves is charged; the operator chooses.
DisconnectPolicy = Literal["drain", "delivered", "prompt_only", "free"]
CountSource = Literal["engine", "provider", "tokenizer", "estimate", "none"]


class OpenedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an attempt when it is admitted: who asked what, and at what price.

    It is kept with the hold, so that an attempt whose gateway died can still be told in full.
    """

    request_id: str
    organisation_id: str
    department_id: str
    key_id: str
    payer_id: str
    endpoint: str
    is_streamed: bool
    model_requested: str
    model_served: str
    upstream: str
    admitted_at: str
    price_version: str
    currency: str
    request_digest: str
    build: str
    project_id: str | None = None
    disconnect_policy: DisconnectPolicy = "delivered"
    # The batch that it is a line of; such lines may have prices of their own.
    batch_id: str | None = None
    # Who is to bear the cost, by weight: departments by id. Where nobody else is, nothing is said.
    split: dict[str, int] | UnsetType = UNSET


class UsageRecord(OpenedRecord, frozen=True, kw_only=True):
    """What became of the attempt: how much was used, how it ended, what it costs."""

    hold_id: str
    held: str
    meters: dict[str, str]
    upstream_usage: msgspec.Raw
    count_source: CountSource
    end_cause: EndCause
    first_token_at: str | None
    ended_at: str
    amount: str
    output_digest: str | None
    # The lease that the hold was granted from; without one the hold had a row in the books.
    lease_id: str | None = None
    # Of an answer from the cache: what it would have cost.
    saved: str | None = None


class RecordEnding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a UsageRecord tells beyond its opening, field by field."""

    hold_id: str
    held: str
    meters: dict[str, str]
    upstream_usage: msgspec.Raw
    count_source: CountSource
    end_cause: EndCause
    first_token_at: str | None
    ended_at: str
    amount: str
    output_digest: str | None
    lease_id: str | None = None
    saved: str | None = None


class EventCharge(msgspec.Struct, frozen=True):
    """What an event says that it costs, and for what."""

    amount: str
    meters: dict[str, str]


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The CloudEvents envelope; `previoushash` chains the events of one source."""

    id: str
    source: str
    sequence: str
    previoushash: str
    subject: str
    partitionkey: str
    time: str
    data: UsageRecord
    specversion: Literal["1.0"] = "1.0"
    type: Literal["steelyard.usage.v1"] = EVENT_TYPE
    datacontenttype: Literal["application/json"] = "application/json"


NO_UPSTREAM_USAGE: Final = msgspec.Raw(b"null")

_decoder = msgspec.json.Decoder(UsageEvent)
_encoder = msgspec.json.Encoder()


def join_record(opened: bytes, ending: RecordEnding) -> bytes:
    """A UsageRecord as JSON: the bytes of an OpenedRecord go on as they are, and then its ending."""
    return b"%b,%b" % (opened[:-1], _encoder.encode(ending)[1:])


def encode_event(event: UsageEvent) -> bytes:
    """The bytes that are stored, hashed and billed."""
    return _encoder.encode(event)


def decode_event(body: bytes) -> UsageEvent:
    """Read an event; raises msgspec.DecodeError or ValidationError on anything else."""
    return _decoder.decode(body)


def hash_event(body: bytes) -> str:
    """The content hash that tells a repeated delivery from a forged one."""
    return hashlib.sha256(body).hexdigest()


def write_meters(usage: Usage) -> dict[str, str]:
    counts = usage.counts
    return {meter: str(counts[meter]) for meter in sorted(counts)}


def read_meters(meters: dict[str, str]) -> Usage:
    return Usage({meter: int(count) for meter, count in meters.items()})
