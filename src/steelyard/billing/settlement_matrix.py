"""The settlement matrix: which part of a usage is charged, for each way an answer can end.

`docs/settlement-matrix.md` states the same rows for people; a test holds the two together.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.usage import NO_USAGE, Usage
from steelyard.metering.usage_event import EndCause

Basis = Literal["reported", "delivered", "nothing"]

MATRIX: Final[Mapping[EndCause, Basis]] = MappingProxyType(
    {
        "completed": "reported",
        "stopped_by_limit": "reported",
        "client_left_before_first_token": "nothing",
        "client_left": "delivered",
        "upstream_refused": "nothing",
        "upstream_failed_before_first_token": "nothing",
        "upstream_failed": "delivered",
        "usage_missing": "nothing",
        "gateway_stopped": "delivered",
        "gateway_crashed": "nothing",
        "event_log_failed": "nothing",
    }
)


def charged_usage(end_cause: EndCause, meter: AnswerMeter) -> Usage:
    """The usage that the tenant pays for."""
    match MATRIX[end_cause]:
        case "reported":
            assert meter.reported is not None, f"{end_cause}: nothing was reported"
            return meter.reported
        case "delivered":
            return meter.delivered
        case "nothing":
            return NO_USAGE
