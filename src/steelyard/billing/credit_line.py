"""Debts: how much a post-paid tenant may owe, what a tenant pays of it, and what it never will.

A tenant owes what it drew on its credit line, and the tax and rounding of invoices that its balance
did not cover. Payments settle the invoices' part first.
"""

from collections.abc import Sequence
from typing import Protocol

import structlog

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.commands import (
    AmountNotPositive,
    Booked,
    Wanted,
    carry_out,
    check_positive,
)
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.top_up import check_owner
from steelyard.errors import Refusal
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.hold import CREDIT_LINE, INVOICED, Draw
from steelyard.ledger.transaction import Command, Transaction, receive_payment, write_off
from steelyard.money import Currency, Money, write_decimal

log = structlog.get_logger()


class MoreThanOwed(Refusal):
    """The tenant owes less than that. What it pays in advance is a top-up."""

    code = "more_than_owed"


def set_credit_limit(
    books: FundBooks, tenant: Organisation | Department, *, limit: Money, command: Command
) -> None:
    """Let a tenant owe up to so much; raises InsufficientFunds if it owes more already."""
    check_owner(tenant, limit)
    if limit.picos < 0:
        raise AmountNotPositive("a credit limit is zero or more")
    with books.write() as unit:
        unit.set_credit_limit(tenant.id, currency=limit.currency, picos=limit.picos)
    log.info(
        "credit_limit.set",
        tenant_id=tenant.id,
        limit=str(limit),
        actor=command.actor,
        reason=command.reason,
    )


def take_payment(
    books: FundBooks, tenant: Organisation | Department, *, amount: Money, command: Command
) -> Booked:
    """A tenant has paid some of what it owes; raises MoreThanOwed."""
    return _book(books, tenant, amount, command, settle=("receive_payment", receive_payment))


def write_off_debt(
    books: FundBooks, tenant: Organisation | Department, *, amount: Money, command: Command
) -> Booked:
    """Some of what a tenant owes will never be paid; raises MoreThanOwed."""
    return _book(books, tenant, amount, command, settle=("write_off", write_off))


def owed_by(unit: FundUnit, payer_id: str, *, currency: Currency) -> int:
    """What a payer owes; below zero where it paid more than it owed. Locked until the unit ends."""
    return sum(_debts(unit, payer_id, currency=currency).values())


def split_over_debts(unit: FundUnit, payer_id: str, amount: Money) -> list[Draw]:
    """The debts of a payer that an amount settles, those of invoices first; the rest is left."""
    left = amount.picos
    settled: list[Draw] = []
    for place, owed in _debts(unit, payer_id, currency=amount.currency).items():
        taken = min(left, owed)
        if taken > 0:
            settled.append(Draw(place, taken))
            left -= taken
    return settled


def _debts(unit: FundUnit, payer_id: str, *, currency: Currency) -> dict[str, int]:
    invoiced = LedgerAccount("invoiced", payer_id, currency)
    receivable = LedgerAccount("receivable", payer_id, currency)
    balances = unit.lock_balances([invoiced, receivable])
    return {
        INVOICED: -balances.get(invoiced.id, 0),
        CREDIT_LINE: -balances.get(receivable.id, 0),
    }


class _Settle(Protocol):
    def __call__(
        self, debts: Sequence[Draw], /, *, payer_id: str, currency: Currency, command: Command
    ) -> Transaction: ...


def _book(
    books: FundBooks,
    tenant: Organisation | Department,
    amount: Money,
    command: Command,
    *,
    settle: tuple[str, _Settle],
) -> Booked:
    check_positive(amount.picos)
    check_owner(tenant, amount)
    template, make = settle

    def write(unit: FundUnit) -> Transaction:
        debts = split_over_debts(unit, tenant.id, amount)
        if sum(debt.picos for debt in debts) < amount.picos:
            owed = max(0, owed_by(unit, tenant.id, currency=amount.currency))
            raise MoreThanOwed(
                f"{tenant.path} owes {write_decimal(owed)} {amount.currency}, less than "
                f"{amount}; what it pays in advance is a top-up"
            )
        transaction = make(debts, payer_id=tenant.id, currency=amount.currency, command=command)
        unit.post([transaction])
        return transaction

    return carry_out(books, command, Wanted(template, command.id, amount.picos), write)
