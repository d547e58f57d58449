"""Statements: what was used in a period, at what price, and where the balance stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.top_up import currency_of
from steelyard.ledger.chart import LedgerAccount
from steelyard.money import Currency, Money


@dataclass(frozen=True, slots=True)
class Balance:
    """Where a tenant stands: what it can spend, and what is set aside for open requests."""

    available: Money
    held: Money

    @property
    def total(self) -> Money:
        return self.available + self.held


@dataclass(frozen=True, slots=True)
class StatementLine:
    """All use of one meter of one model, by one key, at one price."""

    department: str
    key: str
    model: str
    meter: str
    count: int
    picos_per_unit: int
    picos: int


@dataclass(frozen=True, slots=True)
class Period:
    """From a moment on, up to but without another."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        assert self.start <= self.end, f"a period ends after it starts: {self.start} - {self.end}"


@dataclass(frozen=True, slots=True)
class Movements:
    """What moved a balance: where it stood before, what came in and what went out."""

    opening: Money
    top_ups: Money
    charges: Money
    suspended: Money
    closing: Money

    def __post_init__(self) -> None:
        expected = self.opening + self.top_ups - self.charges - self.suspended
        assert self.closing == expected, f"the statement does not add up: {self}"


@dataclass(frozen=True, slots=True)
class Statement:
    """A tenant's use of a period; `movements` only where the tenant has a balance of its own."""

    tenant: str
    period: Period
    currency: Currency
    requests: int
    lines: Sequence[StatementLine]
    movements: Movements | None

    @property
    def total(self) -> Money:
        return Money(sum(line.picos for line in self.lines), self.currency)


class Reports(Protocol):
    """What statements are made of; each call sees one moment of the books."""

    def balance_on(self, account: LedgerAccount, *, before: datetime | None = None) -> int: ...

    def top_ups(self, tenant_id: str, *, period: Period) -> int: ...

    def charges(self, payer_id: str, *, period: Period) -> int: ...

    def suspended(self, payer_id: str, *, period: Period) -> int: ...

    def lines(
        self, tenant: Organisation | Department, *, period: Period
    ) -> list[StatementLine]: ...

    def request_count(self, tenant: Organisation | Department, *, period: Period) -> int: ...


def read_balance(
    reports: Reports, tenant: Organisation | Department, *, before: datetime | None = None
) -> Balance:
    """The balance that this tenant spends, which may be its organisation's."""
    currency = currency_of(tenant)
    payer_id = tenant.payer_id if isinstance(tenant, Department) else tenant.id
    available, held = (
        reports.balance_on(LedgerAccount(kind, payer_id, currency), before=before)
        for kind in ("prepaid", "held")
    )
    return Balance(Money(available, currency), Money(held, currency))


def make_statement(
    reports: Reports, tenant: Organisation | Department, *, period: Period
) -> Statement:
    """The statement of an organisation or a department."""
    name = tenant.path if isinstance(tenant, Department) else tenant.name
    return Statement(
        tenant=name,
        period=period,
        currency=currency_of(tenant),
        requests=reports.request_count(tenant, period=period),
        lines=reports.lines(tenant, period=period),
        movements=_movements(reports, tenant, period) if _has_balance(tenant) else None,
    )


def _has_balance(tenant: Organisation | Department) -> bool:
    return isinstance(tenant, Organisation) or tenant.pays_from == "department"


def _movements(reports: Reports, tenant: Organisation | Department, period: Period) -> Movements:
    currency = currency_of(tenant)
    return Movements(
        opening=read_balance(reports, tenant, before=period.start).total,
        top_ups=Money(reports.top_ups(tenant.id, period=period), currency),
        charges=Money(reports.charges(tenant.id, period=period), currency),
        suspended=Money(reports.suspended(tenant.id, period=period), currency),
        closing=read_balance(reports, tenant, before=period.end).total,
    )
