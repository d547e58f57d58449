"""Adjustments: amounts on an invoice that no event brought; each is one transaction by command."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from steelyard.billing.fund_books import Adjustment, AdjustmentKind, FundUnit
from steelyard.ledger.hold import Draw
from steelyard.ledger.transaction import Command, Transaction
from steelyard.money import Money
from steelyard.timestamp import read_timestamp


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Whom an adjustment is for, how much it is in their favour, and what it is about."""

    kind: AdjustmentKind
    organisation_id: str
    department_id: str
    payer_id: str
    amount: Money
    reference: str
    billed_at: datetime


def write_adjustment(
    unit: FundUnit,
    transaction: Transaction,
    adjusted: Adjusted,
    draws: Sequence[Draw],
    command: Command,
) -> Transaction:
    """Post the transaction, and keep the adjustment for the next invoice."""
    unit.post([transaction])
    unit.insert_adjustment(
        Adjustment(
            id=command.id,
            kind=adjusted.kind,
            organisation_id=adjusted.organisation_id,
            department_id=adjusted.department_id,
            payer_id=adjusted.payer_id,
            amount=adjusted.amount,
            draws=draws,
            reference=adjusted.reference,
            billed_at=adjusted.billed_at,
        )
    )
    return transaction


def billed_from(unit: FundUnit, organisation_id: str, *, at: datetime) -> datetime:
    """The moment that says which invoice it goes on: never one that is closed.

    Ask before accounts are locked: whoever closes a period has the lock of this first, too.
    """
    closed_until = unit.closed_until().get(organisation_id)
    return max(at, read_timestamp(closed_until)) if closed_until else at
