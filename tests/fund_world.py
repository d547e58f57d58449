"""Books with an organisation in them, spoken to in the verbs of money: no gateway, no prices."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from steelyard.access.budget import Budget, BudgetPeriod
from steelyard.access.tenant import Department, Organisation, PaysFrom
from steelyard.app.stores import open_stores
from steelyard.billing.commands import Booked
from steelyard.billing.credit_line import set_credit_limit
from steelyard.billing.event_preparation import PreparedBatch, PreparedEvent, UsagePath
from steelyard.billing.hold_desk import HoldDesk
from steelyard.billing.hourly_sums import HOUR_CHARACTERS, UsageSums, write_charges
from steelyard.billing.ledger_checks import (
    TransactionCheck,
    check_balances,
    check_holds,
    check_leases,
)
from steelyard.billing.settlement import settle_batch
from steelyard.billing.top_up import GrantTerms, add_credit, grant_credit
from steelyard.clock import FakeClock
from steelyard.ids import new_id
from steelyard.ledger.grant import Funds
from steelyard.ledger.hold import BudgetUnit, Hold, HoldScope
from steelyard.ledger.transaction import Command
from steelyard.metering.event_segment import pack_bodies
from steelyard.money import Currency, Money
from steelyard.settings import Settings
from steelyard.timestamp import write_timestamp

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
USD = Currency("USD")


@dataclass(frozen=True, slots=True)
class Used:
    """What became of a hold: so many picos for so many tokens of input."""

    hold: Hold
    picos: int
    tokens: int = 1


class FundWorld:
    """Books, a hold desk and an organisation `acme` with a department `research`."""

    def __init__(self, settings: Settings) -> None:
        self.stores = open_stores(settings, should_migrate=True)
        self.books = self.stores.books
        self.clock = FakeClock(NOW)
        self.desk = HoldDesk(self.books)
        self.acme = Organisation(new_id(), "acme", USD, NOW)
        self.stores.access.insert_organisation(self.acme)
        self.research = self.department("research", pays_from="organisation")
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.desk.close()
        self.stores.database.close()

    def department(self, name: str, *, pays_from: PaysFrom = "department") -> Department:
        department = Department(new_id(), self.acme, name, pays_from, NOW)
        self.stores.access.insert_department(department)
        return department

    def command(self, command_id: str | None = None) -> Command:
        return Command(command_id or new_id(), self.clock.now(), "test", "because")

    def scope(
        self, *, tokens: int = 1, key_id: str = "key", project_id: str | None = None
    ) -> HoldScope:
        return HoldScope(self.acme.id, self.research.id, project_id, key_id, tokens)

    def hold(self, picos: int, *, payer_id: str | None = None) -> Hold:
        """A hold as it is before it was placed."""
        amount = Money(picos, USD)
        return Hold(new_id(), payer_id or self.acme.id, amount, "source", self.clock.now(), "{}")

    def top_up(self, picos: int, *, tenant: Organisation | Department | None = None) -> Booked:
        return add_credit(
            self.books, tenant or self.acme, amount=Money(picos, USD), command=self.command()
        )

    def top_up_until(self, picos: int, *, at: datetime) -> Booked:
        """Paid money that expires."""
        terms, amount = GrantTerms(at), Money(picos, USD)
        return add_credit(self.books, self.acme, amount=amount, command=self.command(), terms=terms)

    def give(self, picos: int, *, days: int = 1, priority: int | None = None) -> Booked:
        """Promotional credit that expires after so many days."""
        terms = GrantTerms(self.clock.now() + timedelta(days=days), priority)
        amount = Money(picos, USD)
        return grant_credit(
            self.books, self.acme, amount=amount, command=self.command(), terms=terms
        )

    def allow_credit(self, picos: int) -> None:
        limit = Money(picos, USD)
        set_credit_limit(self.books, self.acme, limit=limit, command=self.command())

    def budget(
        self,
        amount: int,
        *,
        scope_id: str | None = None,
        unit: BudgetUnit = "money",
        period: BudgetPeriod = "month",
        is_hard: bool = True,
    ) -> Budget:
        """A budget of the organisation, or of whatever has this id."""
        budget = Budget(
            id=new_id(),
            organisation_id=self.acme.id,
            scope="key" if scope_id else "organisation",
            scope_id=scope_id or self.acme.id,
            unit=unit,
            period=period,
            amount=amount,
            is_hard=is_hard,
            currency=USD,
            time_zone=self.acme.time_zone,
            created_at=self.clock.now(),
        )
        self.stores.budgets.insert_budget(budget)
        return budget

    def standing(self, budget: Budget) -> tuple[int, int]:
        """What is reserved and used of a budget's window of now."""
        for standing in self.stores.budgets.standings(at=self.clock.now()):
            if standing.budget.id == budget.id:
                return standing.stands.reserved, standing.stands.used
        raise AssertionError(f"there is no budget {budget.id}")

    def place(self, picos: int, *, tokens: int = 1, key_id: str = "key") -> Hold:
        """Place a hold for the department `research`, or raise what the desk raises."""
        placing = self.desk.place(self.hold(picos), self.scope(tokens=tokens, key_id=key_id))
        return placing.result(timeout=30)

    def grow(self, hold: Hold, picos: int, *, tokens: int = 1) -> Hold:
        growing = self.desk.grow(
            hold.id, amount=Money(picos, USD), tokens_max=tokens, at=self.clock.now()
        )
        return growing.result(timeout=30)

    def settle(self, *used: Used) -> None:
        """Let events come that end these holds."""
        first = self._sequence + 1
        self._sequence += len(used)
        ended_at = write_timestamp(self.clock.now())
        usage = UsageSums()
        events: list[PreparedEvent] = []
        for place, end in enumerate(used):
            lines = [("input.text", end.tokens, end.picos // max(1, end.tokens))]
            sheet = tuple((meter, picos_per_unit) for meter, _, picos_per_unit in lines)
            usage.add(0, sheet, [end.tokens], hour=ended_at[:HOUR_CHARACTERS])
            events.append(
                PreparedEvent(
                    id=end.hold.id,
                    hold_id=end.hold.id,
                    content_hash=end.hold.id.encode(),
                    source="source",
                    sequence=first + place,
                    path=0,
                    ended_at=ended_at,
                    picos=end.picos,
                    charges=write_charges(lines),
                    complaint=None,
                    record=place,
                    lease_id=end.hold.lease_id,
                    held=end.hold.amount.picos,
                    stated=end.picos,
                )
            )
        batch = PreparedBatch(
            log_id="log",
            first_position=first,
            record_count=len(used),
            events=events,
            paths=[self._path(used[0].hold.payer_id)],
            malformed=[],
            usage=usage,
            segment=pack_bodies([b"{}" for _ in used]),
        )
        with self.books.write() as unit:
            settle_batch(batch, unit, at=self.clock.now())

    def _path(self, payer_id: str) -> UsagePath:
        return UsagePath(
            organisation_id=self.acme.id,
            department_id=self.research.id,
            project_id="",
            key_id="key",
            payer_id=payer_id,
            model="model",
            upstream="upstream",
            currency=USD,
            price_version="price",
        )

    def funds(self, payer_id: str | None = None) -> Funds:
        with self.stores.reports.snapshot() as snapshot:
            return snapshot.funds_of(payer_id or self.acme.id, currency=USD)

    def available(self) -> int:
        return self.funds().available(at=self.clock.now())

    def differences(self) -> list[str]:
        """What the ledger's own checks find wrong."""
        with self.stores.audit.snapshot() as snapshot:
            transactions = TransactionCheck.of(snapshot.transactions())
            sums = transactions.by_account
            windows = snapshot.budget_windows()
            reserved = {window: count for window, (count, _) in windows.items() if count}
            checks = [
                transactions.finish(),
                *check_balances(sums, snapshot.accounts()),
                check_holds(
                    sums,
                    snapshot.holds(),
                    reserved,
                    snapshot.hold_conflicts(),
                    snapshot.leases(),
                ),
                check_leases(sums, snapshot.leases()),
            ]
        return [difference for check in checks for difference in check.differences]

    def balances(self) -> dict[str, int]:
        with self.stores.audit.snapshot() as snapshot:
            return dict(snapshot.balances())
