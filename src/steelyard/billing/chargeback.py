"""Chargeback: what a shared department cost is split among other departments, by weight, and what an
event cost is borne by those that it is split among.

Everything here is pure. `share_costs` says what each department costs after all shares, and
`net_between_payers` what that moves between balances.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType

from steelyard.errors import Refusal

# Who bears a shared department, by its name: departments with their weights.
Weights = Mapping[str, Mapping[str, int]]
# What a department has paid for and another bears, by both names.
Splits = Mapping[tuple[str, str], int]


class ChargebackCyclic(Refusal):
    """Departments cannot be charged for each other in a circle."""

    code = "chargeback_cyclic"


@dataclass(slots=True)
class DepartmentCost:
    """What a department cost by itself, what it bears of others and of shared ones, and what others
    bear of it.

    All departments together cost what they cost by themselves.
    """

    own: int
    # What it bears of events that another department has paid for, by the name of that.
    splits: dict[str, int] = field(default_factory=dict[str, int])
    split_off: int = 0
    shares: dict[str, int] = field(default_factory=dict[str, int])
    passed_on: int = 0

    @property
    def total(self) -> int:
        borne = sum(self.splits.values()) + sum(self.shares.values())
        return self.own + borne - self.split_off - self.passed_on


def split(picos: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Whole shares in proportion to positive weights, which add up to the amount exactly.

    Each share is rounded towards zero; the picos that are left go, one each, to those that lost the
    most by that, and by name where they lost the same.
    """
    assert weights, "a split needs somebody to split among"
    assert all(weight > 0 for weight in weights.values()), f"weights are positive: {weights}"
    sign = -1 if picos < 0 else 1
    whole = sum(weights.values())
    parts = {name: divmod(abs(picos) * weight, whole) for name, weight in weights.items()}
    left = abs(picos) - sum(share for share, _ in parts.values())
    by_loss = sorted(parts, key=lambda name: (-parts[name][1], name))
    served = set(by_loss[:left])
    return {name: sign * (share + (name in served)) for name, (share, _) in parts.items()}


def order_shared(weights: Weights) -> list[str]:
    """The shared departments, each after all those that it bears a part of; raises ChargebackCyclic.

    The order depends on names only.
    """
    bears: dict[str, set[str]] = {name: set() for name in weights}
    for shared, shares in weights.items():
        for name in shares.keys() & weights.keys():
            bears[name].add(shared)
    sorter = TopologicalSorter({name: sorted(bears[name]) for name in sorted(bears)})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise ChargebackCyclic(f"{circle} would be charged for each other in a circle") from error


def share_costs(
    own: Mapping[str, int], weights: Weights, splits: Splits = MappingProxyType({})
) -> dict[str, DepartmentCost]:
    """What each department costs, split events and then shared departments passed on; raises
    ChargebackCyclic."""
    names = {*own, *weights, *(name for shares in weights.values() for name in shares)}
    names |= {name for pair in splits for name in pair}
    costs = {name: DepartmentCost(own.get(name, 0)) for name in sorted(names)}
    for (payer, bearer), picos in sorted(splits.items()):
        if payer != bearer and picos:
            costs[bearer].splits[payer] = picos
            costs[payer].split_off += picos
    for shared in order_shared(weights):
        passed_on = costs[shared].total
        for name, picos in split(passed_on, weights[shared]).items():
            costs[name].shares[shared] = picos
        costs[shared].passed_on = passed_on
    return costs


def net_between_payers(
    costs: Mapping[str, DepartmentCost], payer_of: Mapping[str, str]
) -> dict[str, int]:
    """What each payer's balance gets (positive) or gives for all shares; they sum to zero.

    A share of a department with the same payer moves nothing.
    """
    net = dict.fromkeys(payer_of.values(), 0)
    for name, cost in costs.items():
        for shared, picos in (*cost.splits.items(), *cost.shares.items()):
            net[payer_of[name]] -= picos
            net[payer_of[shared]] += picos
    return {payer: picos for payer, picos in sorted(net.items()) if picos}
