"""Pay-outs: a tenant gets back what it paid in and has not spent."""

from collections.abc import Sequence
from datetime import datetime

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.commands import Booked, Wanted, carry_out, check_positive
from steelyard.billing.credit_line import owed_by
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.top_up import check_owner
from steelyard.ledger.grant import GrantBalance, draw
from steelyard.ledger.hold import Draw
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command, Transaction, pay_out
from steelyard.money import Money


def pay_out_credit(
    books: FundBooks, tenant: Organisation | Department, *, amount: Money, command: Command
) -> Booked:
    """Give unspent paid money back; never promotional credit, and never what the tenant owes.

    Raises InsufficientFunds.
    """
    check_positive(amount.picos)
    check_owner(tenant, amount)

    def write(unit: FundUnit) -> Transaction:
        balances, _ = unit.lock_funds([tenant.id], currency=amount.currency)[tenant.id]
        draws = draw_paid(
            unit, balances, payer_id=tenant.id, amount=amount, at=command.at, what="paid out"
        )
        transaction = pay_out(draws, payer_id=tenant.id, currency=amount.currency, command=command)
        unit.post([transaction])
        return transaction

    return carry_out(books, command, Wanted("pay_out", command.id, amount.picos), write)


def draw_paid(
    unit: FundUnit,
    balances: Sequence[GrantBalance],
    *,
    payer_id: str,
    amount: Money,
    at: datetime,
    what: str,
) -> list[Draw]:
    """Take unspent paid money out of a balance, beyond what its payer owes.

    Raises InsufficientFunds, with `what` for whoever reads it.
    """
    paid = [balance for balance in balances if balance.grant.kind == "paid"]
    live = sum(balance.picos for balance in paid if balance.grant.is_live(at=at))
    free = max(0, live - max(0, owed_by(unit, payer_id, currency=amount.currency)))
    draws = draw(paid, picos=amount.picos, credit_picos=0, at=at)
    if draws is None or amount.picos > free:
        can_go = Money(free, amount.currency)
        raise InsufficientFunds(f"{can_go} of paid money can be {what}, not {amount}")
    return draws
