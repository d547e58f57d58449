"""Shares of a shared department: nothing is lost, nothing is made, and nobody is better off by order."""

import json
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.billing.chargeback import (
    ChargebackCyclic,
    Weights,
    net_between_payers,
    order_shared,
    share_costs,
    split,
)
from steelyard.billing.chargeback_report import (
    ChargebackFacts,
    DepartmentPlace,
    canonical_chargeback,
    chargeback_document,
    chargeback_rows,
    make_chargeback,
)
from steelyard.billing.chargeback_weights import WEIGHT_MAX
from steelyard.billing.event_shares import shares_of
from steelyard.billing.replayed_chargeback import balances_of
from steelyard.billing.share_checks import expected_shares
from steelyard.billing.statement import Period
from steelyard.money import Currency, read_decimal, write_decimal

USD = Currency("USD")
MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
NAMES = [f"d{number}" for number in range(8)]
# Beyond what a float counts exactly, and beyond 64 bits.
picos = st.integers(-(10**25), 10**25)
weights_of_one = st.dictionaries(st.sampled_from(NAMES), st.integers(1, WEIGHT_MAX), min_size=1)
costs = st.fixed_dictionaries(dict.fromkeys(NAMES, picos))
# What one department has paid for and another bears.
split_costs = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), picos, max_size=6
)


@st.composite
def chains(draw: st.DrawFn) -> Weights:
    """Shared departments that only bear those before them, under names in any order."""
    names = draw(st.permutations(NAMES))
    weights: dict[str, dict[str, int]] = {}
    for place, shared in enumerate(names[:-1]):
        if draw(st.booleans()):
            later = st.sampled_from(names[place + 1 :])
            weights[shared] = draw(st.dictionaries(later, st.integers(1, 1000), min_size=1))
    return dict(draw(st.permutations(list(weights.items()))))


@given(picos, weights_of_one)
def test_shares_add_up_and_are_proportional_to_the_pico(
    amount: int, weights: dict[str, int]
) -> None:
    shares = split(amount, weights)

    whole = sum(weights.values())
    assert shares.keys() == weights.keys()
    assert sum(shares.values()) == amount
    for name, weight in weights.items():
        assert abs(shares[name] - Fraction(amount * weight, whole)) < 1


@given(st.integers(0, 10**25), weights_of_one)
def test_verification_splits_an_event_as_settlement_does(
    amount: int, weights: dict[str, int]
) -> None:
    shares = shares_of("event", picos=amount, weights=weights)

    assert expected_shares(amount, weights) == {
        share.department_id: (share.weight, share.picos) for share in shares
    }


@given(picos, weights_of_one, st.data())
def test_shares_do_not_depend_on_order(
    amount: int, weights: dict[str, int], data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(weights.items()))))

    assert split(amount, shuffled) == split(amount, weights)


@given(picos, weights_of_one)
def test_who_weighs_more_never_bears_less(amount: int, weights: dict[str, int]) -> None:
    shares = split(amount, weights)

    ranked = sorted(weights, key=lambda name: (weights[name], abs(shares[name])))
    assert [abs(shares[name]) for name in ranked] == sorted(abs(p) for p in shares.values())


@given(costs, chains(), split_costs)
def test_chains_move_everything_to_those_who_are_not_shared(
    own: dict[str, int], weights: Weights, splits: dict[tuple[str, str], int]
) -> None:
    shared_out = share_costs(own, weights, splits)

    assert sum(cost.total for cost in shared_out.values()) == sum(own.values())
    assert all(shared_out[name].total == 0 for name in weights)
    for shared in weights:
        borne = [c.shares[shared] for c in shared_out.values() if shared in c.shares]
        assert sum(borne) == shared_out[shared].passed_on


@given(costs, chains(), st.data())
def test_chains_do_not_depend_on_order(
    own: dict[str, int], weights: Weights, data: st.DataObject
) -> None:
    shuffled = {
        shared: dict(data.draw(st.permutations(list(shares.items()))))
        for shared, shares in data.draw(st.permutations(list(weights.items())))
    }

    assert share_costs(own, shuffled) == share_costs(own, weights)


@given(costs, chains(), split_costs, st.lists(st.sampled_from("xyz"), min_size=8, max_size=8))
def test_what_moves_between_payers_is_the_difference_that_shares_make(
    own: dict[str, int], weights: Weights, splits: dict[tuple[str, str], int], payers: list[str]
) -> None:
    payer_of = dict(zip(NAMES, payers, strict=True))
    shared_out = share_costs(own, weights, splits)

    net = net_between_payers(shared_out, payer_of)

    assert sum(net.values()) == 0
    for payer in set(payers):
        names = [name for name in NAMES if payer_of[name] == payer]
        paid = sum(own[name] for name in names)
        bears = sum(shared_out[name].total for name in names)
        assert net.get(payer, 0) == paid - bears


@given(
    costs,
    chains(),
    split_costs,
    st.lists(st.sampled_from("xyz"), min_size=8, max_size=8),
    picos,
)
def test_verification_reads_out_of_the_document_what_was_to_move(
    own: dict[str, int],
    weights: Weights,
    splits: dict[tuple[str, str], int],
    payers: list[str],
    unassigned: int,
) -> None:
    payer_of = dict(zip(NAMES, payers, strict=True))
    facts = ChargebackFacts(
        organisation="acme",
        currency=USD,
        period=Period(MOMENT, MOMENT),
        invoice="acme-0001",
        payers={name: f"acme/{name}" for name in "xyz"},
        departments=[DepartmentPlace(name, payer_of[name]) for name in NAMES],
        own=own,
        unassigned=unassigned,
        weights=weights,
        splits=splits,
    )
    chargeback = make_chargeback(facts)

    found = balances_of(canonical_chargeback(chargeback), invoice="acme-0001")

    net = net_between_payers(share_costs(own, weights, splits), payer_of)
    rows = chargeback_rows(chargeback)
    assert found == {payer: (amount, USD) for payer, amount in net.items()}
    assert sum(read_decimal(row["amount"]) for row in rows) == sum(own.values()) + unassigned
    assert balances_of(canonical_chargeback(chargeback), invoice="acme-0002") is None


@given(costs, st.integers(1, 10**12))
def test_verification_refuses_a_document_whose_shares_are_not_fair(
    own: dict[str, int], moved: int
) -> None:
    departments = [DepartmentPlace(name, name) for name in NAMES]
    facts = ChargebackFacts(
        organisation="acme",
        currency=USD,
        period=Period(MOMENT, MOMENT),
        invoice="acme-0001",
        payers={name: f"acme/{name}" for name in NAMES},
        departments=departments,
        own=own,
        unassigned=0,
        weights={"d0": {"d1": 1, "d2": 1}},
    )
    document = chargeback_document(make_chargeback(facts))
    lines = {line["department"]: line for line in document["departments"]}
    stands = {line["payer"]: line for line in document["balances"]}

    # Everything is forged together, so that all of it adds up.
    for name, picos in (("d1", 2 * moved), ("d2", -2 * moved)):
        for place in (lines[name]["shares"][0], lines[name]):
            field = "amount" if "amount" in place else "total"
            place[field] = write_decimal(read_decimal(place[field]) + picos)
        entry = stands.setdefault(
            f"acme/{name}", {"payer": f"acme/{name}", "payer_id": name, "amount": "0"}
        )
        entry["amount"] = write_decimal(read_decimal(entry["amount"]) - picos)
    document["balances"] = [line for line in stands.values() if line["amount"] != "0"]

    assert balances_of(json.dumps(document), invoice="acme-0001") is None


@given(chains(), st.data())
def test_a_circle_is_refused(weights: Weights, data: st.DataObject) -> None:
    order = order_shared(weights)
    ends = [name for shares in weights.values() for name in shares]
    if not ends:
        return
    end = data.draw(st.sampled_from(ends))
    start = next(name for name in order if end in weights[name])

    with pytest.raises(ChargebackCyclic):
        order_shared({**weights, end: {**weights.get(end, {}), start: 1}})


def test_the_picos_that_are_left_go_to_those_that_lost_the_most() -> None:
    assert split(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert split(5, {"a": 2, "b": 1}) == {"a": 3, "b": 2}
    assert split(-5, {"a": 2, "b": 1}) == {"a": -3, "b": -2}
    assert split(1, {"a": 1, "b": WEIGHT_MAX}) == {"a": 0, "b": 1}
