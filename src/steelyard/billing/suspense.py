"""Suspense: events that two computations disagree on, and how a person decides on each, once.

A decision takes the held amount off the suspense account: what is decided is earned and billed as
an adjustment, the rest returns to where the hold drew it from. The event itself stays as it is.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import structlog

from steelyard.billing.adjustments import Adjusted, billed_from, write_adjustment
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.budgets import BudgetUse, settle_budget_draws
from steelyard.billing.commands import CommandIdTaken
from steelyard.billing.event_rating import EventNotRateable
from steelyard.billing.fund_books import FundUnit
from steelyard.billing.refund import EventNotFound
from steelyard.errors import Refusal
from steelyard.ledger.hold import BudgetDraw, Draw, burn
from steelyard.ledger.transaction import Command, decide_suspense
from steelyard.metering.usage import TOKEN_METERS
from steelyard.metering.usage_event import UsageRecord
from steelyard.money import Money, read_decimal
from steelyard.pricing.price_book import CanonicalDocument

log = structlog.get_logger()

Side = Literal["gateway", "worker"]


class EventNotSuspended(Refusal):
    """The event is settled: there is nothing to decide. 'steelyard refund event' gives it back."""

    code = "event_not_suspended"


class SuspenseDecided(Refusal):
    """This event was decided on already. 'steelyard refund event' gives back what it cost."""

    code = "suspense_decided"


class DecisionTooLarge(Refusal):
    """A decision is from zero up to what was held for the event."""

    code = "decision_too_large"


class DecisionUnclear(Refusal):
    """Say one of --amount, --as-gateway, --as-worker and --free."""

    code = "decision_unclear"


@dataclass(frozen=True, slots=True)
class Decision:
    """How a suspended event ended: `picos` of what was held are charged."""

    command_id: str
    picos: int
    decided_at: datetime
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuspendedEvent:
    """An event in suspense, with what its hold had set aside; `decision` once there is one."""

    id: str
    organisation_id: str
    department_id: str
    payer_id: str
    held: Money
    draws: Sequence[Draw]
    budget_draws: Sequence[BudgetDraw]
    billed_at: datetime
    record: UsageRecord
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class Decided:
    """What a decision did; `is_repeat` where it was made before, and nothing more happened."""

    event: SuspendedEvent
    decision: Decision
    is_repeat: bool


class SuspenseUnit(FundUnit, Protocol):
    """One unit of work on suspense."""

    def find_suspended(self, event_id: str) -> SuspendedEvent | None: ...

    def list_suspended(self, *, with_decided: bool, limit: int) -> list[SuspendedEvent]:
        """The oldest first."""
        ...

    def insert_decision(self, event_id: str, decision: Decision) -> None: ...


class SuspenseBooks(Protocol):
    """The books, in units of work on suspense."""

    def write(self) -> AbstractContextManager[SuspenseUnit]: ...


def decide_event(books: SuspenseBooks, event_id: str, *, picos: int, command: Command) -> Decided:
    """Charge so much of what was held for an event, and return the rest; once for each event."""
    with books.write() as unit:
        unit.wait_turn(event_id)
        event = find_suspended(unit, event_id)
        decision = Decision(command.id, picos, command.at, command.actor, command.reason)
        if event.decision is not None:
            if (event.decision.command_id, event.decision.picos) != (command.id, picos):
                raise SuspenseDecided(f"{event.decision.actor} decided on event {event_id} already")
            return Decided(event, event.decision, is_repeat=True)
        if unit.find_transaction(command.id) is not None:
            raise CommandIdTaken(f"the id {command.id!r} is that of another command")
        if not 0 <= picos <= event.held.picos:
            raise DecisionTooLarge(f"{event.held} were held for event {event_id}, no more")
        _book(unit, event, picos, command)
        unit.insert_decision(event_id, decision)
        settle_budget_draws(unit, _budget_uses(event, picos), at=command.at)
    log.info("suspense.decided", event_id=event_id, picos=picos, actor=command.actor)
    return Decided(event, decision, is_repeat=False)


def find_suspended(unit: SuspenseUnit, event_id: str) -> SuspendedEvent:
    """The suspended event of this id; raises EventNotFound or EventNotSuspended."""
    event = unit.find_suspended(event_id)
    if event is not None:
        return event
    if unit.find_event(event_id) is None:
        raise EventNotFound(f"there is no event {event_id!r} in the books")
    raise EventNotSuspended


def amount_of(event: SuspendedEvent, side: Side, documents: Mapping[str, CanonicalDocument]) -> int:
    """What the gateway said, or what the worker makes of it today; raises EventNotRateable."""
    if side == "gateway":
        return read_decimal(event.record.amount)
    [rated] = BatchRating(documents).rate([event.record])
    if rated.complaint is not None:
        raise EventNotRateable(f"event {event.id}: {rated.complaint}")
    return rated.picos


def _book(unit: SuspenseUnit, event: SuspendedEvent, picos: int, command: Command) -> None:
    """Nothing was held for a free request: then nothing moves."""
    if not event.held.picos:
        return
    billed_at = billed_from(unit, event.organisation_id, at=command.at)
    spent, back = burn(event.draws, picos=picos)
    transaction = decide_suspense(
        Money(picos, event.held.currency),
        draws=back,
        payer_id=event.payer_id,
        reference=event.id,
        command=command,
    )
    if not picos:
        unit.post([transaction])
        return
    charged = Adjusted(
        kind="suspense",
        organisation_id=event.organisation_id,
        department_id=event.department_id,
        payer_id=event.payer_id,
        amount=Money(-picos, event.held.currency),
        reference=event.id,
        billed_at=billed_at,
    )
    write_adjustment(unit, transaction, charged, spent, command)


def _budget_uses(event: SuspendedEvent, picos: int) -> list[BudgetUse]:
    """What is charged counts in the windows that the hold had reserved in."""
    meters = event.record.meters
    tokens = sum(int(count) for meter, count in meters.items() if meter in TOKEN_METERS)
    return [
        BudgetUse(BudgetDraw(draw.unit, draw.budget_id, draw.window, 0), used)
        for draw in event.budget_draws
        for used in [picos if draw.unit == "money" else tokens]
        if picos
    ]
