"""The recount: a second count of an attempt, beside what its upstream reported.

Prompts and answers are in the job, which never leaves the gateway's machine; the record has numbers
only.
"""

import hashlib
from typing import Final, Literal

import msgspec

RecountOutcome = Literal["recounted", "uncountable", "dropped"]
RecountSource = Literal["tokenizer", "estimate", "none"]
SHARES: Final = 1_000_000


class RecountJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted again, and what was reported of it.

    `prompt` is a JSON object with `messages` or `prompt`, and `tools`. `answer` is what the client
    was handed: chunks, one a line, or the choices. `served_sha256` is the tokenizer that the
    upstream says it has, where it says so.
    """

    id: str
    upstream: str
    model: str
    prompt: bytes
    answer: bytes
    is_streamed: bool
    reported_input: int
    reported_output: int
    served_sha256: str | None = None


class RecountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a recount found; under the id of the event, or a new one for a number of dropped jobs.

    A side of which there is no second count has no first one here either, so that sums compare.
    """

    id: str
    upstream: str
    model: str
    outcome: RecountOutcome
    recounted_at: str
    event_count: int = 1
    reported_input: int | None = None
    recounted_input: int | None = None
    reported_output: int | None = None
    recounted_output: int | None = None
    source: RecountSource = "none"
    pin_sha256: str | None = None
    reason: str | None = None


def is_sampled(event_id: str, *, share: int) -> bool:
    """Whether an event is in a sample of so many of a million: the same on every machine."""
    digest = hashlib.sha256(event_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % SHARES < share


def drift_ppm(*, reported: int, recounted: int) -> int:
    """How much more was reported than was counted, in millionths of the count; nearest to zero."""
    if recounted == 0:
        return 0 if reported == 0 else SHARES
    difference = (abs(reported - recounted) * SHARES) // recounted
    return difference if reported >= recounted else -difference
