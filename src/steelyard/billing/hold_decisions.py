"""Which holds of a batch are granted: enough money in the grants or on the credit line, and room in
every hard budget. Either all of it is reserved together, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from steelyard.billing.budgets import BudgetExceeded, BudgetReservations, grown_draws
from steelyard.billing.fund_books import FundUnit
from steelyard.errors import Refusal
from steelyard.ledger.grant import GrantBalance, draw
from steelyard.ledger.hold import CREDIT_LINE, Draw, Hold, HoldScope
from steelyard.ledger.store import HoldEnd, InsufficientFunds
from steelyard.ledger.transaction import place_holds
from steelyard.money import Currency, Money, read_decimal


class HoldDeclined(InsufficientFunds):
    """The available balance does not cover the hold."""

    def __init__(self, *, available: Money) -> None:
        super().__init__(f"{available} available")
        self.available = available


class HoldEnded(Refusal):
    """The hold has ended already. Place another under a new id."""

    code = "hold_ended"


class HoldNotFound(Refusal):
    """There is no such hold. 'steelyard hold list' shows those that are open."""

    code = "hold_not_found"


class HoldIdTaken(Refusal):
    """Another hold has this id already. Place this one under a new id."""

    code = "hold_id_taken"


@dataclass(frozen=True, slots=True)
class Placement:
    """A hold that somebody wants, and whose work it is for."""

    hold: Hold
    scope: HoldScope


@dataclass(frozen=True, slots=True)
class Growth:
    """An open hold shall be of so much in all."""

    hold_id: str
    amount: Money
    tokens_max: int
    at: datetime


Application = Placement | Growth
Answer = Hold | Refusal


@dataclass(slots=True)
class _Purse:
    """What a payer has left while a batch is decided."""

    grants: list[GrantBalance]
    credit_picos: int
    drawn: list[Hold] = field(default_factory=list[Hold])

    def available(self, *, at: datetime) -> int:
        live = sum(balance.picos for balance in self.grants if balance.grant.is_live(at=at))
        return live + max(0, self.credit_picos)

    def take(self, draws: Sequence[Draw]) -> None:
        for taken in draws:
            if taken.grant_id == CREDIT_LINE:
                self.credit_picos -= taken.picos
        by_grant = {taken.grant_id: taken.picos for taken in draws}
        self.grants = [
            GrantBalance(balance.grant, balance.picos - by_grant.get(balance.grant.id, 0))
            for balance in self.grants
        ]


def decide_holds(applications: Sequence[Application], unit: FundUnit) -> list[Answer]:
    """Answer in order of arrival, and write what is granted and what is declined."""
    return _Batch(applications, unit).decide()


class _Batch:
    """Everything that a batch needs is read and locked at once, and written at once."""

    def __init__(self, applications: Sequence[Application], unit: FundUnit) -> None:
        self._unit = unit
        self._applications = applications
        placements = [a for a in applications if isinstance(a, Placement)]
        growing = {a.hold_id for a in applications if isinstance(a, Growth)}
        self._open = unit.lock_holds(growing)
        grown = list(self._open.values())
        self._purses = _purses(unit, [*(p.hold for p in placements), *grown])
        # Only now: whoever placed one of these ids before has finished with the payer.
        wanted = {placement.hold.id for placement in placements}
        self._open |= unit.read_holds(wanted - self._open.keys())
        self._ends = unit.hold_ends((wanted | growing) - self._open.keys())
        self._budgets = BudgetReservations(
            unit, placed=[(p.hold, p.scope) for p in placements], grown=grown
        )
        self._placed: dict[str, Hold] = {}
        self._grown: dict[str, Hold] = {}
        self._declined: dict[str, str] = {}

    def decide(self) -> list[Answer]:
        answers = [self._answer(application) for application in self._applications]
        self._write()
        return answers

    def _answer(self, application: Application) -> Answer:
        try:
            if isinstance(application, Placement):
                return self._place(application)
            return self._grow(application)
        except Refusal as refusal:
            return refusal

    def _place(self, placement: Placement) -> Hold:
        hold = placement.hold
        known = self._open.get(hold.id)
        if known is not None:
            if (known.payer_id, known.opened) != (hold.payer_id, hold.opened):
                raise HoldIdTaken
            return known
        if hold.id in self._ends:
            raise ended_refusal(hold.id, *self._ends[hold.id])
        try:
            draws = self._draw(hold, picos=hold.amount.picos, at=hold.placed_at)
            budget_draws = self._budgets.draws_for(hold, placement.scope)
        except (HoldDeclined, BudgetExceeded) as refusal:
            self._declined[hold.id] = _write_reason(refusal)
            self._ends[hold.id] = "declined", self._declined[hold.id]
            raise
        granted = msgspec.structs.replace(
            hold, draws=tuple(draws), budget_draws=tuple(budget_draws)
        )
        self._reserve(granted)
        self._open[hold.id] = self._placed[hold.id] = granted
        return granted

    def _grow(self, growth: Growth) -> Hold:
        hold = self._open.get(growth.hold_id)
        if hold is None:
            if growth.hold_id not in self._ends:
                raise HoldNotFound(f"there is no hold {growth.hold_id!r}")
            raise ended_refusal(growth.hold_id, *self._ends[growth.hold_id])
        assert growth.amount.currency == hold.amount.currency, f"{growth.amount} for {hold.amount}"
        extra = max(0, growth.amount.picos - hold.amount.picos)
        budget_draws = self._budgets.draws_to_grow(
            hold, picos=growth.amount.picos, tokens=growth.tokens_max, at=growth.at
        )
        draws = self._draw(hold, picos=extra, at=growth.at)
        amount = Money(extra, hold.amount.currency)
        self._reserve(
            msgspec.structs.replace(hold, amount=amount, draws=draws, budget_draws=budget_draws)
        )
        grown = msgspec.structs.replace(
            hold,
            amount=hold.amount + amount,
            draws=(*hold.draws, *draws),
            budget_draws=tuple(grown_draws(hold.budget_draws, budget_draws)),
        )
        self._open[hold.id] = grown
        # A hold that is new in this batch is written once, as it is at the end.
        (self._placed if hold.id in self._placed else self._grown)[hold.id] = grown
        return grown

    def _draw(self, hold: Hold, *, picos: int, at: datetime) -> list[Draw]:
        purse = self._purses[hold.payer_id, hold.amount.currency]
        draws = draw(purse.grants, picos=picos, credit_picos=max(0, purse.credit_picos), at=at)
        if draws is None:
            raise HoldDeclined(available=Money(purse.available(at=at), hold.amount.currency))
        return draws

    def _reserve(self, hold: Hold) -> None:
        purse = self._purses[hold.payer_id, hold.amount.currency]
        if hold.draws:
            purse.take(hold.draws)
            purse.drawn.append(hold)
        self._budgets.reserve(hold.budget_draws)

    def _write(self) -> None:
        transactions = [
            place_holds(f"{purse.drawn[0].id}/placed/{held}", purse.drawn, at=at)
            for purse in self._purses.values()
            if purse.drawn
            for held in [self._open[purse.drawn[0].id].amount.picos]
            for at in [max(hold.placed_at for hold in purse.drawn)]
        ]
        self._unit.post([transaction for transaction in transactions if transaction])
        self._unit.insert_holds(list(self._placed.values()))
        self._unit.grow_holds(list(self._grown.values()))
        if self._declined:
            declined_at = max(_moment(application) for application in self._applications)
            self._unit.end_holds(self._declined, end="declined", at=declined_at)
        self._budgets.save()


def _purses(unit: FundUnit, holds: Sequence[Hold]) -> dict[tuple[str, Currency], _Purse]:
    """Currency by currency, as accounts are locked."""
    purses: dict[tuple[str, Currency], _Purse] = {}
    for currency in sorted({hold.amount.currency for hold in holds}):
        payer_ids = {hold.payer_id for hold in holds if hold.amount.currency == currency}
        for payer_id, (grants, credit) in unit.lock_funds(payer_ids, currency=currency).items():
            purses[payer_id, currency] = _Purse(grants, credit)
    return purses


def _moment(application: Application) -> datetime:
    return application.hold.placed_at if isinstance(application, Placement) else application.at


def _write_reason(refusal: HoldDeclined | BudgetExceeded) -> str:
    if isinstance(refusal, HoldDeclined):
        return f"{refusal.code}:{refusal.available}"
    return f"{refusal.code}:{refusal.unit}:{refusal.left}:{refusal}"


def ended_refusal(hold_id: str, end: HoldEnd, reason: str) -> Refusal:
    """What is said of a hold that has ended; one that was declined is declined again."""
    if end != "declined":
        return HoldEnded(f"the hold {hold_id} was {end} already; place another under a new id")
    code, _, rest = reason.partition(":")
    if code == BudgetExceeded.code:
        unit, left, message = rest.split(":", 2)
        return BudgetExceeded(
            message, unit="money" if unit == "money" else "tokens", left=int(left)
        )
    amount, _, currency = rest.partition(" ")
    return HoldDeclined(available=Money(read_decimal(amount), Currency(currency)))
