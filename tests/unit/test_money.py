"""Money is exact, whole, and refuses whatever is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refusal
from steelyard.money import (
    AmountMalformed,
    Currency,
    Money,
    read_currency,
    read_decimal,
    write_decimal,
)

PICOS = st.integers(min_value=-(10**38), max_value=10**38)


@given(PICOS)
def test_what_is_written_reads_back_the_same(picos: int) -> None:
    assert read_decimal(write_decimal(picos)) == picos


@pytest.mark.parametrize(
    ("text", "picos"),
    [
        ("1", 10**12),
        ("0.000000000001", 1),
        ("-12.5", -12_500_000_000_000),
        ("9007.199254740993", 9_007_199_254_740_993),
        ("9223372.036854775808", 2**63),
        ("1.0000000000000", 10**12),
    ],
)
def test_decimals_are_read_exactly(text: str, picos: int) -> None:
    assert read_decimal(text) == picos


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1e3",
        "+1",
        ".5",
        "5.",
        "01",
        "1_000",
        "NaN",
        "1,5",
        " 1",
        "0.0000000000001",
        "١",
        "9" * 31,
    ],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(AmountMalformed):
        read_decimal(text)


@pytest.mark.parametrize("picos", [1.0, True, "1"])
def test_money_is_a_whole_number(picos: object) -> None:
    with pytest.raises(AssertionError, match="whole"):
        Money(picos, Currency("USD"))  # pyright: ignore[reportArgumentType]


def test_currencies_do_not_mix() -> None:
    with pytest.raises(AssertionError, match="USD"):
        _ = Money(1, Currency("USD")) + Money(1, Currency("EUR"))


@pytest.mark.parametrize("text", ["usd", "US", "DOLLAR", "U$D", ""])
def test_a_currency_is_three_capitals(text: str) -> None:
    with pytest.raises(Refusal):
        read_currency(text)
