"""The credit line: how much a post-paid tenant may owe, what it pays of that, and what it never
will."""

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
from steelyard.ledger.transaction import Command, Transaction, receive_payment, write_off
from steelyard.money import Money, write_decimal

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
    """A post-paid tenant has paid some of what it owes; raises MoreThanOwed."""
    transaction = receive_payment(_checked(tenant, amount), payer_id=tenant.id, command=command)
    return _book(books, tenant, amount, command, transaction)


def write_off_debt(
    books: FundBooks, tenant: Organisation | Department, *, amount: Money, command: Command
) -> Booked:
    """Some of what a tenant owes will never be paid; raises MoreThanOwed."""
    transaction = write_off(_checked(tenant, amount), payer_id=tenant.id, command=command)
    return _book(books, tenant, amount, command, transaction)


def owed_by(unit: FundUnit, payer_id: str, amount: Money) -> int:
    """What a payer owes in the currency of an amount; locked until the unit ends."""
    account = LedgerAccount("receivable", payer_id, amount.currency)
    return -unit.lock_balances([account]).get(account.id, 0)


def _checked(tenant: Organisation | Department, amount: Money) -> Money:
    check_positive(amount.picos)
    check_owner(tenant, amount)
    return amount


def _book(
    books: FundBooks,
    tenant: Organisation | Department,
    amount: Money,
    command: Command,
    transaction: Transaction,
) -> Booked:
    def write(unit: FundUnit) -> Transaction:
        owed = owed_by(unit, tenant.id, amount)
        if amount.picos > owed:
            raise MoreThanOwed(
                f"{tenant.path} owes {write_decimal(max(0, owed))} {amount.currency}, less than "
                f"{amount}; what it pays in advance is a top-up"
            )
        unit.post([transaction])
        return transaction

    wanted = Wanted(transaction.template, command.id, amount.picos)
    return carry_out(books, command, wanted, write)
