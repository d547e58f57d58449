"""Checks who bears the events that are split, by arithmetic of its own: it counts picos out one by one."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from msgspec import UNSET

from steelyard.billing.invariant_check import Check
from steelyard.billing.stored_event import ReplayedEvent

# Weight and picos by department, by event.
SharesByEvent = Mapping[str, Mapping[str, tuple[int, int]]]


class ShareCheck:
    """I10: what departments bear of an event is what it costs, by the weights of its bytes."""

    def __init__(self) -> None:
        self._check = Check("I10", "what departments bear of a split event is what it costs")
        self._seen = 0

    def see_batch(self, events: Sequence[ReplayedEvent], shares: SharesByEvent) -> None:
        for event in events:
            found = dict(shares.get(event.row.id, {}))
            self._seen += len(found)
            self._check.expect(
                found == _expected(event),
                lambda e=event, f=found: (
                    f"event {e.row.id} of {e.row.amount} picos: departments bear {f}, "
                    f"and should bear {_expected(e)}"
                ),
            )

    def finish(self, share_count: int) -> Check:
        self._check.expect(
            self._seen == share_count,
            lambda: f"{share_count - self._seen} event_shares are of no event in the books",
        )
        return self._check


def expected_shares(amount: int, weights: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Weight and picos by department: those whose part was cut most get the picos that are left."""
    whole = sum(weights.values())
    exact = {name: Fraction(amount * weight, whole) for name, weight in weights.items()}
    parts = {name: int(part) for name, part in exact.items()}
    for name in sorted(weights, key=lambda one: (parts[one] - exact[one], one)):
        if sum(parts.values()) < amount:
            parts[name] += 1
    return {name: (weights[name], parts[name]) for name in weights}


def _expected(event: ReplayedEvent) -> dict[str, tuple[int, int]]:
    weights = event.said.data.split
    if weights is UNSET:
        return {}
    # Of a suspended event nothing is earned; what is decided on it is an adjustment.
    amount = event.row.amount if event.row.outcome == "settled" else 0
    return expected_shares(amount, weights)
