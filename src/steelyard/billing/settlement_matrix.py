"""The settlement matrix: which part of a usage is charged, for each way an answer can end.

`docs/settlement-matrix.md` states the same rows for people; a test holds the two together.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from steelyard.metering.usage import CACHE_HIT, NO_USAGE, Usage
from steelyard.metering.usage_event import DisconnectPolicy, EndCause

Basis = Literal["reported", "delivered", "prompt", "hit", "nothing"]

MATRIX: Final[Mapping[EndCause, Basis | Literal["policy"]]] = MappingProxyType(
    {
        "completed": "reported",
        "stopped_by_limit": "reported",
        "hold_growth_denied": "delivered",
        "cache_hit": "hit",
        "client_left_before_first_token": "policy",
        "client_left": "policy",
        "upstream_refused": "nothing",
        "upstream_failed_before_first_token": "nothing",
        "upstream_failed": "delivered",
        "usage_missing": "nothing",
        "gateway_stopped": "policy",
        "gateway_crashed": "policy",
        "event_log_failed": "nothing",
    }
)


POLICIES: Final[Mapping[DisconnectPolicy, Basis]] = MappingProxyType(
    {"drain": "reported", "delivered": "delivered", "prompt_only": "prompt", "free": "nothing"}
)


def charged_usage(
    end_cause: EndCause, *, reported: Usage | None, delivered: Usage, policy: DisconnectPolicy
) -> Usage:
    """The usage that the tenant pays for, of what was reported and what was delivered."""
    row = MATRIX[end_cause]
    match POLICIES[policy] if row == "policy" else row:
        case "reported":
            # Of an answer that was cut short the upstream may have said nothing yet.
            assert row == "policy" or reported, f"{end_cause}: nothing was reported"
            return reported or NO_USAGE
        case "delivered":
            return delivered
        case "prompt":
            return (reported or NO_USAGE).of_prompt()
        case "hit":
            return Usage({CACHE_HIT: 1})
        case "nothing":
            return NO_USAGE
