"""Money and credit that a tenant is given: top-ups, which are paid for, and promotional credit."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.commands import Booked, Wanted, carry_out, check_positive
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.errors import Refusal
from steelyard.ledger.grant import DEFAULT_PRIORITY, Grant, GrantKind
from steelyard.ledger.transaction import Command, Transaction, give_promotional_credit, top_up
from steelyard.money import Currency, Money

PRIORITY_MAX: Final = 100


class CurrencyMismatch(Refusal):
    """The amount is in another currency than the balance."""

    code = "currency_mismatch"


class NoOwnBalance(Refusal):
    """This department spends its organisation's balance; name the organisation."""

    code = "no_own_balance"


class ExpiryPassed(Refusal):
    """An expiry lies in the future."""

    code = "expiry_passed"


class PriorityMalformed(Refusal):
    """A priority is a whole number from 0 to 100; the lowest is spent first."""

    code = "priority_malformed"


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """When a grant expires, and its place in the order of burning."""

    expires_at: datetime | None = None
    priority: int | None = None

    @property
    def are_standing(self) -> bool:
        """Nothing was said: money goes to the payer's standing grant."""
        return self.expires_at is None and self.priority is None


def add_credit(
    books: FundBooks,
    tenant: Organisation | Department,
    *,
    amount: Money,
    command: Command,
    terms: GrantTerms | None = None,
) -> Booked:
    """Book a top-up; it is available when this returns.

    It adds to the payer's standing grant, unless its terms make it a grant of its own.
    """
    terms = terms or GrantTerms()
    _check(tenant, amount, command, terms)

    def write(unit: FundUnit) -> Transaction:
        if terms.are_standing:
            grant = standing_grant(unit, tenant.id, currency=amount.currency, at=command.at)
        else:
            grant = _open_grant(unit, tenant, "paid", amount, command, terms=terms)
        transaction = top_up(amount, grant=grant, command=command)
        unit.post([transaction])
        return transaction

    grant_id = standing_grant_id(tenant.id) if terms.are_standing else grant_id_of(command)
    return carry_out(books, command, Wanted("top_up", grant_id, amount.picos), write)


def grant_credit(
    books: FundBooks,
    tenant: Organisation | Department,
    *,
    amount: Money,
    command: Command,
    terms: GrantTerms,
) -> Booked:
    """Give credit away, as a grant of its own."""
    _check(tenant, amount, command, terms)

    def write(unit: FundUnit) -> Transaction:
        grant = _open_grant(unit, tenant, "promotional", amount, command, terms=terms)
        transaction = give_promotional_credit(amount, grant=grant, command=command)
        unit.post([transaction])
        return transaction

    wanted = Wanted("promotional_credit", grant_id_of(command), amount.picos)
    return carry_out(books, command, wanted, write)


def standing_grant(unit: FundUnit, payer_id: str, *, currency: Currency, at: datetime) -> Grant:
    """The grant of paid money that never expires; made when it is first needed."""
    grant_id = standing_grant_id(payer_id)
    unit.wait_turn(grant_id)
    grant = unit.find_grant(grant_id)
    if grant is None:
        grant = Grant(grant_id, payer_id, "paid", currency, at)
        unit.insert_grant(grant)
    return grant


def standing_grant_id(payer_id: str) -> str:
    return f"{payer_id}.main"


def grant_id_of(command: Command) -> str:
    """The id of the grant that a command makes; no standing grant is called so."""
    return f"{command.id}.grant"


def currency_of(tenant: Organisation | Department) -> Currency:
    return tenant.currency


def check_owner(tenant: Organisation | Department, amount: Money) -> None:
    """Raises NoOwnBalance or CurrencyMismatch."""
    if amount.currency != tenant.currency:
        raise CurrencyMismatch(
            f"the balance is in {tenant.currency}, the amount in {amount.currency}"
        )
    if tenant.payer_id != tenant.id:
        raise NoOwnBalance(f"{tenant.path} spends its organisation's balance; name that instead")


def _check(
    tenant: Organisation | Department, amount: Money, command: Command, terms: GrantTerms
) -> None:
    check_positive(amount.picos)
    check_owner(tenant, amount)
    if terms.expires_at is not None and terms.expires_at <= command.at:
        raise ExpiryPassed
    if terms.priority is not None and not 0 <= terms.priority <= PRIORITY_MAX:
        raise PriorityMalformed


def _open_grant(
    unit: FundUnit,
    tenant: Organisation | Department,
    kind: GrantKind,
    amount: Money,
    command: Command,
    *,
    terms: GrantTerms,
) -> Grant:
    priority = DEFAULT_PRIORITY if terms.priority is None else terms.priority
    grant = Grant(
        id=grant_id_of(command),
        payer_id=tenant.id,
        kind=kind,
        currency=amount.currency,
        granted_at=command.at,
        expires_at=terms.expires_at,
        priority=priority,
    )
    unit.insert_grant(grant)
    return grant
