"""Top-ups: money that a tenant pays in."""

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.books import Books
from steelyard.clock import Clock
from steelyard.errors import Refusal
from steelyard.ids import new_id
from steelyard.ledger.transaction import Transaction, top_up
from steelyard.money import Currency, Money


class TopUpNotPositive(Refusal):
    """A top-up is more than zero."""

    code = "top_up_not_positive"


class CurrencyMismatch(Refusal):
    """The amount is in another currency than the balance."""

    code = "currency_mismatch"


class NoOwnBalance(Refusal):
    """This department spends its organisation's balance; top up the organisation."""

    code = "no_own_balance"


def add_credit(
    books: Books,
    tenant: Organisation | Department,
    *,
    amount: Money,
    actor: str,
    reason: str,
    clock: Clock,
) -> Transaction:
    """Book a top-up; it is available when this returns."""
    if amount.picos <= 0:
        raise TopUpNotPositive(f"{amount} is not more than zero")
    if amount.currency != currency_of(tenant):
        raise CurrencyMismatch(
            f"the balance is in {currency_of(tenant)}, the amount in {amount.currency}"
        )
    if isinstance(tenant, Department) and tenant.pays_from != "department":
        raise NoOwnBalance(
            f"{tenant.path} spends the balance of {tenant.organisation.name}; top that up"
        )
    transaction = top_up(
        new_id(), amount, tenant_id=tenant.id, at=clock.now(), actor=actor, reason=reason
    )
    with books.write() as unit:
        unit.post([transaction])
    return transaction


def currency_of(tenant: Organisation | Department) -> Currency:
    return tenant.currency if isinstance(tenant, Organisation) else tenant.organisation.currency
