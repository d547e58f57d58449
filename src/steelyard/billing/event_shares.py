"""Who bears an event that is split among departments, to the pico. Pure.

Its payer has paid all of it: what others bear is charged back with the period.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from steelyard.billing.chargeback import split

WEIGHT_MAX: Final = 1_000_000_000
DEPARTMENTS_MAX: Final = 1_000


class EventShare(NamedTuple):
    """What one department bears of one event; what all bear is what it costs."""

    event_id: str
    department_id: str
    weight: int
    picos: int


def is_split(weights: Mapping[str, int]) -> bool:
    """Whether these can be the weights of an event."""
    are_weights = all(1 <= weight <= WEIGHT_MAX for weight in weights.values())
    return 1 <= len(weights) <= DEPARTMENTS_MAX and are_weights


def shares_of(event_id: str, *, picos: int, weights: Mapping[str, int]) -> list[EventShare]:
    """The shares of an event that costs so much."""
    parts = split(picos, weights)
    return [EventShare(event_id, name, weights[name], parts[name]) for name in sorted(weights)]
