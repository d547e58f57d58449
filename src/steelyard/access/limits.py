"""Limits: how much may be asked of a place per minute, at once and in one request. Pure."""

import fnmatch
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from steelyard.errors import Refusal

LimitScope = Literal["organisation", "department", "project", "key", "model"]
IpRange = ipaddress.IPv4Network | ipaddress.IPv6Network
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Those that are a number; a request is counted against the first three.
NUMBERS: Final = (
    "requests_per_minute",
    "tokens_per_minute",
    "requests_at_once",
    "input_tokens_max",
    "output_tokens_max",
)
LISTS: Final = ("models", "ip_ranges")
NUMBER_MAX: Final = 2**31 - 1


class LimitMalformed(Refusal):
    """A limit is a whole number from 0 to 2147483647, a model's name or a range of addresses."""

    code = "limit_malformed"


class ModelNotAllowed(Refusal):
    """This key may not use this model. GET /v1/models lists those that it may."""

    code = "model_not_allowed"


class AddressNotAllowed(Refusal):
    """This key does not work from this address."""

    code = "address_not_allowed"


@dataclass(frozen=True, slots=True)
class LimitSet:
    """What a place allows; None or nothing where it sets no limit of that kind."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None
    input_tokens_max: int | None = None
    output_tokens_max: int | None = None
    # Names or patterns, as a price book has them.
    models: tuple[str, ...] = ()
    # In the notation of CIDR.
    ip_ranges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in NUMBERS:
            number: int | None = getattr(self, name)
            if number is not None and not 0 <= number <= NUMBER_MAX:
                raise LimitMalformed(f"{name} is from 0 to {NUMBER_MAX}, not {number}")
        for text in self.ip_ranges:
            read_ip_range(text)

    @property
    def is_counted(self) -> bool:
        """Whether requests have to be counted."""
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.requests_at_once is None
        )

    def allows_model(self, *names: str) -> bool:
        """Whether one of a model's names is allowed."""
        return not self.models or any(
            fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.models
        )


NO_LIMITS: Final = LimitSet()


@dataclass(frozen=True, slots=True)
class CountedPlace:
    """A place that counts requests: a part of the tree, or a model."""

    scope: LimitScope
    id: str
    limits: LimitSet

    @property
    def name(self) -> str:
        """How a caller is told of it, who knows no other names."""
        return f"this {self.scope}" if self.scope == "key" else f"this key's {self.scope}"


def read_ip_range(text: str) -> IpRange:
    """A range of addresses such as 10.0.0.0/8, or a single one; raises LimitMalformed."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise LimitMalformed(f"{text!r} is no range of addresses: {error}") from error


def read_address(text: str) -> IpAddress | None:
    """An address as sockets and proxies write it, with a port or not; None where it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A socket for both families tells IPv4 addresses within IPv6.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_within(address: IpAddress, ranges: Sequence[IpRange]) -> bool:
    return any(address in each for each in ranges)
