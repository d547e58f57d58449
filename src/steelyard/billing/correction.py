"""Corrections: an amount in a tenant's favour, or against it, that belongs to no single event."""

from collections.abc import Sequence

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.adjustments import Adjusted, billed_from, write_adjustment
from steelyard.billing.commands import AmountNotPositive, Booked, Wanted, carry_out
from steelyard.billing.credit_line import split_over_debts
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.top_up import CurrencyMismatch, standing_grant
from steelyard.ledger.grant import draw
from steelyard.ledger.hold import Draw
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command, Transaction, charge_usage, refund_usage
from steelyard.money import Money


def correct_balance(
    books: FundBooks, tenant: Organisation | Department, *, amount: Money, command: Command
) -> Booked:
    """Give back (positive) or charge (negative) an amount; it goes on the next invoice.

    What is given back settles what the payer owes first. Raises InsufficientFunds.
    """
    if amount.picos == 0:
        raise AmountNotPositive("a correction is more or less than zero")
    if amount.currency != tenant.currency:
        raise CurrencyMismatch(
            f"the balance is in {tenant.currency}, the amount in {amount.currency}"
        )
    is_credit = amount.picos > 0

    def write(unit: FundUnit) -> Transaction:
        adjusted = _adjusted(unit, tenant, amount, command)
        make = refund_usage if is_credit else charge_usage
        draws = (_credited if is_credit else _charged)(unit, adjusted, command)
        transaction = make(
            draws,
            payer_id=adjusted.payer_id,
            currency=amount.currency,
            reference=command.id,
            command=command,
        )
        return write_adjustment(unit, transaction, adjusted, draws, command)

    template = "refund_usage" if is_credit else "charge_usage"
    return carry_out(books, command, Wanted(template, command.id, abs(amount.picos)), write)


def _adjusted(
    unit: FundUnit, tenant: Organisation | Department, amount: Money, command: Command
) -> Adjusted:
    organisation = tenant.organisation if isinstance(tenant, Department) else tenant
    return Adjusted(
        kind="correction",
        organisation_id=organisation.id,
        department_id=tenant.id if isinstance(tenant, Department) else "",
        payer_id=tenant.payer_id,
        amount=amount,
        reference=command.id,
        billed_at=billed_from(unit, organisation.id, at=command.at),
    )


def _credited(unit: FundUnit, adjusted: Adjusted, command: Command) -> Sequence[Draw]:
    payer_id, amount = adjusted.payer_id, adjusted.amount
    grant = standing_grant(unit, payer_id, currency=amount.currency, at=command.at)
    debts = split_over_debts(unit, payer_id, amount)
    rest = amount.picos - sum(debt.picos for debt in debts)
    return [*debts, Draw(grant.id, rest)] if rest else debts


def _charged(unit: FundUnit, adjusted: Adjusted, command: Command) -> Sequence[Draw]:
    payer_id, amount = adjusted.payer_id, adjusted.amount
    balances, credit = unit.lock_funds([payer_id], currency=amount.currency)[payer_id]
    draws = draw(balances, picos=-amount.picos, credit_picos=credit, at=command.at)
    if draws is None:
        raise InsufficientFunds(f"the available balance does not cover {amount}")
    return draws
