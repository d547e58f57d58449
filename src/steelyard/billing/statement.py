"""Statements: what was used in a period, at what price, and where the balance stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.top_up import currency_of
from steelyard.ledger.grant import Funds
from steelyard.money import Currency, Money


@dataclass(frozen=True, slots=True)
class Balance:
    """Where a tenant stands: what it can spend, what is set aside for open requests, and what it
    owes."""

    available: Money
    held: Money
    owed: Money

    @property
    def total(self) -> Money:
        return self.available + self.held - self.owed


@dataclass(frozen=True, slots=True)
class StatementLine:
    """All use of one meter of one model, by one key, at one price."""

    department: str
    project: str | None
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
    """What moved a balance: where it stood before, what came in and what went out.

    A balance is what is available and held, less what is owed. `commands` are the sums of what
    people booked by hand, by kind of transaction: positive adds to the balance.
    """

    opening: Money
    commands: Mapping[str, Money]
    charges: Money
    suspended: Money
    closing: Money

    def __post_init__(self) -> None:
        expected = self.opening.picos + sum(money.picos for money in self.commands.values())
        expected -= self.charges.picos + self.suspended.picos
        assert self.closing.picos == expected, f"the statement does not add up: {self}"


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
    """What a statement is made from: one snapshot of the books."""

    def funds_of(self, payer_id: str, *, currency: Currency) -> Funds:
        """What a payer has now, grant by grant."""
        ...

    def commands(self, payer_id: str, *, before: datetime) -> Mapping[str, int]:
        """What was booked by hand on a payer's accounts before a moment, by template."""
        ...

    def charges(self, payer_id: str, *, before: datetime) -> int:
        """What usage that is billed before a moment took from a payer."""
        ...

    def suspended(self, payer_id: str, *, before: datetime) -> int:
        """What waits in suspense of a payer's usage that is billed before a moment."""
        ...

    def lines(
        self, tenant: Organisation | Department, *, period: Period
    ) -> list[StatementLine]: ...

    def request_count(self, tenant: Organisation | Department, *, period: Period) -> int: ...


def read_balance(reports: Reports, tenant: Organisation | Department) -> Balance:
    """The balance that this tenant spends, which may be its organisation's."""
    currency = currency_of(tenant)
    payer_id = tenant.payer_id if isinstance(tenant, Department) else tenant.id
    funds = reports.funds_of(payer_id, currency=currency)
    return Balance(
        available=Money(funds.granted, currency),
        held=Money(funds.held, currency),
        owed=Money(funds.owed + funds.invoiced, currency),
    )


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
    """Each kind of movement up to the end of the period, less what it was at the start."""
    currency = currency_of(tenant)
    earlier, later = (reports.commands(tenant.id, before=t) for t in (period.start, period.end))
    charged = [reports.charges(tenant.id, before=t) for t in (period.start, period.end)]
    waiting = [reports.suspended(tenant.id, before=t) for t in (period.start, period.end)]
    moved = {kind: later[kind] - earlier.get(kind, 0) for kind in sorted(later)}
    return Movements(
        opening=Money(sum(earlier.values()) - charged[0] - waiting[0], currency),
        commands={kind: Money(picos, currency) for kind, picos in moved.items() if picos},
        charges=Money(charged[1] - charged[0], currency),
        suspended=Money(waiting[1] - waiting[0], currency),
        closing=Money(sum(later.values()) - charged[1] - waiting[1], currency),
    )
