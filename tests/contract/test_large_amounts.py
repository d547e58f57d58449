"""Amounts around the limits of floats and of 64 bits: exact, or refused and nothing changed."""

import pytest

from steelyard.ledger.store import BalanceTooLarge
from tests.fund_world import FundWorld, Used

FLOAT_EXACT_MAX = 2**53
SQLITE_MAX = 2**63 - 1


@pytest.mark.parametrize("picos", [FLOAT_EXACT_MAX - 1, FLOAT_EXACT_MAX, FLOAT_EXACT_MAX + 1])
def test_an_amount_beyond_what_a_float_can_hold_is_kept_to_the_pico(
    picos: int, funds: FundWorld
) -> None:
    funds.top_up(picos)

    funds.settle(Used(funds.place(picos), picos=picos - 1))

    assert funds.available() == 1
    assert funds.balances()["revenue:USD"] == picos - 1
    assert funds.differences() == []


def test_a_balance_goes_to_the_last_pico_of_64_bits(funds: FundWorld) -> None:
    funds.top_up(SQLITE_MAX)

    funds.settle(Used(funds.place(SQLITE_MAX), picos=SQLITE_MAX))

    assert funds.balances()["revenue:USD"] == SQLITE_MAX
    assert funds.differences() == []


@pytest.mark.parametrize("first", [0, 1, SQLITE_MAX])
def test_one_pico_beyond_64_bits_is_for_postgresql_only(first: int, funds: FundWorld) -> None:
    if first:
        funds.top_up(first)
    before = funds.balances()
    beyond = SQLITE_MAX + 1 - first

    if funds.stores.database.is_sqlite:
        with pytest.raises(BalanceTooLarge):
            funds.top_up(beyond)
        assert funds.balances() == before
    else:
        funds.top_up(beyond)
        assert funds.available() == SQLITE_MAX + 1
    assert funds.differences() == []
