"""Everything that leases can get into, tried out: no state breaks a rule, and none is stuck."""

from dataclasses import replace
from typing import get_args

import pytest

from tests.model.explorer import Violated, explore
from tests.model.lease_model import Fault, Rules

FAULTS = {
    "ended under an open hold": "names a lease that is gone",
    "returned what is in use": "below nothing|names a lease that is gone|more was used",
    "recovered leases before attempts": "names a lease that is gone",
    "granted more than leased": "below nothing|more was used",
    "settled without a position": "not what is billed",
    "forgot its leases": "nothing leads to rest",
}


@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        pytest.param(Rules(attempts_max=3), marks=pytest.mark.slow),
        pytest.param(Rules(gateways=3), marks=pytest.mark.slow),
        pytest.param(Rules(gateways=1, leases_max=3, attempts_max=3), marks=pytest.mark.slow),
    ],
    ids=["two gateways", "three attempts", "three gateways", "one gateway"],
)
def test_no_way_through_leases_loses_or_makes_money(rules: Rules) -> None:
    explored = explore(
        rules.start(), steps=rules.steps, problem=rules.problem, is_quiet=rules.is_quiet
    )

    assert explored.count > 10_000


@pytest.mark.parametrize("fault", FAULTS)
def test_each_rule_is_needed(fault: Fault) -> None:
    rules = replace(Rules(), fault=fault)

    with pytest.raises(Violated, match=FAULTS[fault]):
        explore(rules.start(), steps=rules.steps, problem=rules.problem, is_quiet=rules.is_quiet)


def test_every_fault_is_tried() -> None:
    assert {*FAULTS, "none"} == {*get_args(Fault)}
