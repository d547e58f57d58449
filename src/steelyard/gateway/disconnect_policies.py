"""Which disconnect policy an attempt has; it is fixed at admission."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from steelyard.access.virtual_key import VirtualKey
from steelyard.metering.usage_event import DisconnectPolicy


@dataclass(frozen=True, slots=True)
class DisconnectPolicies:
    """The key's own policy goes before the model's, and that before the gateway's."""

    default: DisconnectPolicy = "delivered"
    by_model: Mapping[str, DisconnectPolicy] = field(default_factory=dict[str, DisconnectPolicy])

    def policy_of(self, key: VirtualKey, *, model: str, is_repeatable: bool) -> DisconnectPolicy:
        """An answer that is kept for its client is finished without it; where even that fails, the
        client asks again and pays then: `free`."""
        if is_repeatable:
            return "free"
        return key.disconnect_policy or self.by_model.get(model) or self.default
