"""Transactions: postings that sum to zero, made only by the named templates below."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from steelyard.ledger.chart import AccountKind, LedgerAccount
from steelyard.ledger.hold import Hold
from steelyard.money import Money

Parts = dict[tuple[AccountKind, str | None], int]


@dataclass(frozen=True, slots=True)
class Posting:
    """A signed amount on one ledger account; credits are positive."""

    account: LedgerAccount
    picos: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """Postings that belong together; they sum to zero in one currency."""

    id: str
    template: str
    reference: str
    booked_at: datetime
    postings: Sequence[Posting]
    actor: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert len(self.postings) >= 2, f"{self.id}: a transaction has at least two postings"
        assert sum(p.picos for p in self.postings) == 0, f"{self.id}: postings do not sum to zero"
        assert len({p.account.currency for p in self.postings}) == 1, f"{self.id}: two currencies"


def top_up(
    transaction_id: str, amount: Money, *, tenant_id: str, at: datetime, actor: str, reason: str
) -> Transaction:
    """The tenant has paid in; the amount is available at once."""
    assert amount.picos > 0, f"a top-up is positive, got {amount}"
    postings = _move(amount, source=("clearing", None), target=("prepaid", tenant_id))
    return Transaction(transaction_id, "top_up", transaction_id, at, postings, actor, reason)


def place_hold(hold: Hold) -> Transaction | None:
    """Set the hold's amount aside; nothing moves for a hold of zero."""
    if not hold.amount.picos:
        return None
    postings = _move(hold.amount, source=("prepaid", hold.payer_id), target=("held", hold.payer_id))
    return Transaction(f"{hold.id}/placed", "place_hold", hold.id, hold.placed_at, postings)


def settle_hold(hold: Hold, charge: Money, *, at: datetime) -> Transaction | None:
    """End the hold: the charge is earned, the rest returns.

    A charge above the hold is not taken from the tenant: the part that nothing covers stands on the
    suspense account until somebody decides.
    """
    if not hold.amount.picos and not charge.picos:
        return None
    captured = min(charge.picos, hold.amount.picos)
    parts: Parts = {
        ("held", hold.payer_id): -hold.amount.picos,
        ("prepaid", hold.payer_id): hold.amount.picos - captured,
        ("revenue", None): charge.picos,
        ("suspense", None): captured - charge.picos,
    }
    return Transaction(f"{hold.id}/settled", "settle_hold", hold.id, at, _postings(parts, charge))


def suspend_hold(hold: Hold, *, at: datetime) -> Transaction | None:
    """Two computations disagree: the held amount waits in suspense, and nothing is earned."""
    if not hold.amount.picos:
        return None
    parts: Parts = {
        ("held", hold.payer_id): -hold.amount.picos,
        ("suspense", None): hold.amount.picos,
    }
    postings = _postings(parts, hold.amount)
    return Transaction(f"{hold.id}/suspended", "suspend_hold", hold.id, at, postings)


def _move(
    amount: Money, *, source: tuple[AccountKind, str | None], target: tuple[AccountKind, str | None]
) -> tuple[Posting, ...]:
    return _postings({source: -amount.picos, target: amount.picos}, amount)


def _postings(parts: Parts, money: Money) -> tuple[Posting, ...]:
    return tuple(
        Posting(LedgerAccount(kind, tenant_id, money.currency), picos)
        for (kind, tenant_id), picos in parts.items()
        if picos
    )
