"""Holds that nobody closed: marked when they are old, and released by hand where no event comes."""

from collections.abc import Sequence
from datetime import datetime

import structlog

from steelyard.billing.budgets import BudgetUse, settle_budget_draws
from steelyard.billing.fund_books import FundBooks, FundUnit
from steelyard.billing.hold_decisions import HoldNotFound, ended_refusal
from steelyard.ledger.hold import Hold
from steelyard.ledger.transaction import Command, release_hold

log = structlog.get_logger()


def mark_old_holds(books: FundBooks, *, placed_before: datetime) -> Sequence[str]:
    """Mark holds that are open since before a moment as unresolved; an event still settles them.

    Nothing is released by time: the answer may still be running, or its event on the way.
    """
    with books.write() as unit:
        marked = unit.mark_unresolved(placed_before=placed_before)
    if marked:
        log.warning("holds.unresolved", count=len(marked), hold_ids=marked[:20])
    return marked


def list_open_holds(books: FundBooks, *, only_unresolved: bool, limit: int) -> list[Hold]:
    """Open holds, the oldest first."""
    with books.write() as unit:
        return unit.list_holds(only_unresolved=only_unresolved, limit=limit)


def release_open_hold(books: FundBooks, hold_id: str, *, command: Command) -> Hold:
    """Give back what a hold has set aside; an event that comes later is quarantined.

    Raises HoldNotFound, and HoldEnded where it has ended already.
    """
    with books.write() as unit:
        return release_in_unit(unit, hold_id, command=command)


def release_in_unit(unit: FundUnit, hold_id: str, *, command: Command) -> Hold:
    """The same, as a part of something else that happens with it or not at all."""
    hold = unit.take_holds([hold_id]).get(hold_id)
    if hold is None:
        end = unit.hold_ends([hold_id]).get(hold_id)
        if end is None:
            raise HoldNotFound(f"there is no open hold {hold_id!r}")
        raise ended_refusal(hold_id, *end)
    released = release_hold(hold, command=command)
    unit.post([released] if released else [])
    unit.end_holds({hold_id: command.reason}, end="released", at=command.at)
    uses = [BudgetUse(draw, 0) for draw in hold.budget_draws]
    settle_budget_draws(unit, uses, at=command.at)
    return hold
