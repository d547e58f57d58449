"""Where a request comes from, behind proxies or not."""

from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.access.limits import (
    IpAddress,
    IpRange,
    is_within,
    read_address,
    read_ip_range,
)


def read_trusted_proxies(text: str) -> tuple[IpRange, ...]:
    """Ranges of addresses with commas between them; raises LimitMalformed."""
    return tuple(read_ip_range(part.strip()) for part in text.split(",") if part.strip())


def client_address(scope: Mapping[str, Any], *, trusted: Sequence[IpRange]) -> IpAddress | None:
    """The nearest address that is not a trusted proxy's; None where nobody says it.

    Anybody can write an X-Forwarded-For of their own: only what trusted proxies have added at its
    end is believed.
    """
    peer = scope.get("client")
    address = read_address(peer[0]) if peer else None
    if address is None or not is_within(address, trusted):
        return address
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    if not lines:
        return address
    for hop in reversed(b",".join(lines).decode("latin-1").split(",")):
        address = read_address(hop)
        if address is None or not is_within(address, trusted):
            return address
    return address
