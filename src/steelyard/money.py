"""Money: exact amounts, counted in picos. No float may enter or leave.

A pico is 10⁻¹² of the currency's unit. A price per million tokens with six decimals is a whole
number of picos per token, so rating never rounds.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NewType

import msgspec

from steelyard.errors import Refusal

PICOS_PER_UNIT = 10**12
PICO_DIGITS = 12

Currency = NewType("Currency", str)

# ISO 4217: most currencies have a hundredth as their smallest unit; these do not.
_MINOR_DIGITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        currency: digits
        for digits, currencies in (
            (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
            (3, "BHD IQD JOD KWD LYD OMR TND"),
            (4, "CLF UYW"),
        )
        for currency in currencies.split()
    }
)
_USUAL_MINOR_DIGITS: Final = 2

# 30 digits are more than all the money there is; the bound keeps hostile input cheap.
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,29})(?:\.[0-9]{1,30})?", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}")


class AmountMalformed(Refusal):
    """The amount is not a plain decimal number with at most 12 decimals."""

    code = "amount_malformed"


class CurrencyUnknown(Refusal):
    """A currency is three capital letters, as in ISO 4217: USD, EUR, CNY."""

    code = "currency_unknown"


class Money(msgspec.Struct, frozen=True):
    """An exact amount in one currency, counted in picos."""

    picos: int
    currency: Currency

    def __post_init__(self) -> None:
        assert type(self.picos) is int, f"money must be whole, got {self.picos!r}"

    def __add__(self, other: "Money") -> "Money":
        assert self.currency == other.currency, f"{self.currency} + {other.currency}"
        return Money(self.picos + other.picos, self.currency)

    def __sub__(self, other: "Money") -> "Money":
        assert self.currency == other.currency, f"{self.currency} - {other.currency}"
        return Money(self.picos - other.picos, self.currency)

    def __str__(self) -> str:
        return f"{write_decimal(self.picos)} {self.currency}"


def read_currency(text: str) -> Currency:
    """Accept an ISO 4217 shaped code."""
    if not _CURRENCY.fullmatch(text):
        raise CurrencyUnknown(f"{text!r} is not a currency; write three capital letters, as in USD")
    return Currency(text)


def read_decimal(text: str) -> int:
    """Turn '12.5' into picos, exactly; refuses more than 12 decimals, exponents and signs of '+'."""
    if not _DECIMAL.fullmatch(text):
        raise AmountMalformed(f"{text!r} is not an amount; write a plain decimal such as 12.50")
    whole, _, decimals = text.lstrip("-").partition(".")
    decimals = decimals.rstrip("0")
    if len(decimals) > PICO_DIGITS:
        raise AmountMalformed(f"{text!r} has more than {PICO_DIGITS} decimals")
    picos = int(whole) * PICOS_PER_UNIT + int(decimals.ljust(PICO_DIGITS, "0"))
    return -picos if text.startswith("-") else picos


def write_decimal(picos: int) -> str:
    """The shortest decimal that reads back to the same picos."""
    if picos < 0:
        return f"-{write_decimal(-picos)}"
    # At least one digit before the point.
    digits = f"{picos:013d}"
    decimals = digits[-PICO_DIGITS:].rstrip("0")
    return f"{digits[:-PICO_DIGITS]}.{decimals}" if decimals else digits[:-PICO_DIGITS]


def minor_digits(currency: Currency) -> int:
    """How many decimals the currency's smallest unit has, by ISO 4217."""
    return _MINOR_DIGITS.get(currency, _USUAL_MINOR_DIGITS)


def round_half_even_to_minor_unit(exact: Money) -> tuple[Money, Money]:
    """The one rounding of an invoice: what is payable, and what that is more than the exact
    amount."""
    picos = 10 ** (PICO_DIGITS - minor_digits(exact.currency))
    payable = divide_half_even(exact.picos, picos) * picos
    return Money(payable, exact.currency), Money(payable - exact.picos, exact.currency)


def divide_half_even(dividend: int, divisor: int) -> int:
    """The nearest whole number; of two that are as near, the even one."""
    assert divisor > 0, f"the divisor is positive, got {divisor}"
    quotient, rest = divmod(dividend, divisor)
    is_up = 2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1)
    return quotient + is_up


def write_minor(money: Money) -> str:
    """An amount of whole minor units with all of their decimals: '12.50', and '12' in yen."""
    digits = minor_digits(money.currency)
    minor, rest = divmod(abs(money.picos), 10 ** (PICO_DIGITS - digits))
    assert rest == 0, f"{money} is no whole number of minor units"
    sign = "-" if money.picos < 0 else ""
    whole, decimals = divmod(minor, 10**digits)
    return f"{sign}{whole}.{decimals:0{digits}d}" if digits else f"{sign}{whole}"
