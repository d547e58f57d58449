"""Reads the setting that gives single models a disconnect policy of their own."""

from typing import get_args

from steelyard.errors import Refusal
from steelyard.metering.usage_event import DisconnectPolicy

POLICIES: tuple[DisconnectPolicy, ...] = get_args(DisconnectPolicy)


class DisconnectPolicyMalformed(Refusal):
    """Disconnect policies are written MODEL=POLICY, with commas between them."""

    code = "disconnect_policy_malformed"


def read_policies(text: str) -> dict[str, DisconnectPolicy]:
    """Read 'model=policy,model=policy'; raises DisconnectPolicyMalformed."""
    policies: dict[str, DisconnectPolicy] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, given = part.rpartition("=")
        if not model or given not in POLICIES:
            raise DisconnectPolicyMalformed(
                f"{part!r} is not MODEL=POLICY; a policy is one of {', '.join(POLICIES)}"
            )
        policies[model] = POLICIES[POLICIES.index(given)]
    return policies
