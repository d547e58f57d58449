"""Upstream cost: what upstreams charge us, beside what we earned with them.

A cost is recorded for a month of UTC and is owed until it is paid. An upstream's credit note is a
cost below zero.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from steelyard.billing.billing_period import read_month
from steelyard.billing.commands import AmountNotPositive, Booked, Wanted, carry_out, check_positive
from steelyard.billing.fund_books import FundUnit
from steelyard.billing.statement import Period
from steelyard.errors import Refusal
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.transaction import (
    Command,
    Transaction,
    cost_template,
    pay_upstream,
    record_upstream_cost,
    upstream_cost_reference,
)
from steelyard.money import Currency, Money

_UPSTREAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# An upstream and a currency.
UpstreamMoney = tuple[str, Currency]


class UpstreamNameMalformed(Refusal):
    """An upstream's name is 1 to 64 letters, digits, dots, dashes and underscores."""

    code = "upstream_name_malformed"


class UpstreamCostNegative(Refusal):
    """An upstream's credit note takes back at most what was recorded for its month."""

    code = "upstream_cost_negative"


class UpstreamOverpaid(Refusal):
    """An upstream is paid at most what we owe it. Record its cost first."""

    code = "upstream_overpaid"


class UpstreamReports(Protocol):
    """What the books hold of upstreams, in one moment."""

    def earned(self, period: Period) -> Mapping[UpstreamMoney, int]:
        """Settled usage of a period of whole hours, by when it was used."""
        ...

    def recorded(self, month: str) -> Mapping[UpstreamMoney, int]: ...

    def payable(self) -> Mapping[UpstreamMoney, int]:
        """What we owe now."""
        ...


class UpstreamUnit(FundUnit, UpstreamReports, Protocol):
    """One unit of work on upstream cost."""


class UpstreamBooks(Protocol):
    """The books, in units of work on upstream cost."""

    def write(self) -> AbstractContextManager[UpstreamUnit]: ...


@dataclass(frozen=True, slots=True)
class Margin:
    """What one upstream earned and cost in a month; `payable` is what we owe it now."""

    upstream: str
    currency: Currency
    revenue: int
    cost: int
    payable: int

    @property
    def picos(self) -> int:
        return self.revenue - self.cost


def record_cost(
    books: UpstreamBooks, upstream: str, *, amount: Money, month: str, command: Command
) -> Booked:
    """Record what an upstream charges for a month, or takes back of that below zero.

    Raises UpstreamNameMalformed, PeriodMalformed, AmountNotPositive or UpstreamCostNegative.
    """
    _check_name(upstream)
    read_month(month, time_zone="UTC")
    if not amount.picos:
        raise AmountNotPositive("a cost of nothing need not be recorded")

    def write(unit: UpstreamUnit) -> Transaction:
        unit.wait_turn(f"upstream/{upstream}")
        recorded = unit.recorded(month).get((upstream, amount.currency), 0)
        if recorded + amount.picos < 0:
            had = Money(recorded, amount.currency)
            raise UpstreamCostNegative(f"{had} of {upstream} are recorded for {month}")
        transaction = record_upstream_cost(amount, upstream=upstream, month=month, command=command)
        unit.post([transaction])
        return transaction

    reference = upstream_cost_reference(upstream, month)
    wanted = Wanted(cost_template(amount), reference, abs(amount.picos))
    return carry_out(books, command, wanted, write)


def pay_upstream_bill(
    books: UpstreamBooks, upstream: str, *, amount: Money, command: Command
) -> Booked:
    """Book that we have paid an upstream; raises UpstreamNameMalformed or UpstreamOverpaid."""
    _check_name(upstream)
    check_positive(amount.picos)

    def write(unit: UpstreamUnit) -> Transaction:
        unit.wait_turn(f"upstream/{upstream}")
        account = LedgerAccount("upstream_payable", upstream, amount.currency)
        owed = unit.lock_balances([account]).get(account.id, 0)
        if amount.picos > owed:
            owing = Money(max(0, owed), amount.currency)
            raise UpstreamOverpaid(f"we owe {upstream} {owing}, less than {amount}")
        transaction = pay_upstream(amount, upstream=upstream, command=command)
        unit.post([transaction])
        return transaction

    return carry_out(books, command, Wanted("pay_upstream", upstream, amount.picos), write)


def margins(reports: UpstreamReports, *, month: str) -> list[Margin]:
    """Revenue beside cost, by upstream and currency; raises PeriodMalformed."""
    earned = reports.earned(read_month(month, time_zone="UTC"))
    recorded, payable = reports.recorded(month), reports.payable()
    owed = {key for key, picos in payable.items() if picos}
    return [
        Margin(*key, earned.get(key, 0), recorded.get(key, 0), payable.get(key, 0))
        for key in sorted({*earned, *recorded, *owed})
    ]


def _check_name(upstream: str) -> None:
    if not _UPSTREAM.fullmatch(upstream):
        raise UpstreamNameMalformed(f"{upstream!r} is no upstream: {UpstreamNameMalformed.__doc__}")
