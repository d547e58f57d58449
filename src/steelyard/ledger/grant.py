"""A grant: money or credit that a tenant was given, with its place in the order of burning."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from steelyard.ledger.hold import CREDIT_LINE, Draw
from steelyard.money import Currency

GrantKind = Literal["paid", "promotional"]
DEFAULT_PRIORITY: Final = 50
_NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Grant:
    """What is spent in order of `priority` (the lowest first), then of expiry, then promotional
    before paid, then of age. Whoever gave it wrote down why."""

    id: str
    payer_id: str
    kind: GrantKind
    currency: Currency
    granted_at: datetime
    expires_at: datetime | None = None
    priority: int = DEFAULT_PRIORITY

    def is_live(self, *, at: datetime) -> bool:
        return self.expires_at is None or at < self.expires_at


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """A grant with what is left of it."""

    grant: Grant
    picos: int


def burn_order(balances: Iterable[GrantBalance]) -> list[GrantBalance]:
    """The order in which grants are spent; the same for everybody who asks."""

    def key(balance: GrantBalance) -> tuple[int, datetime, bool, datetime, str]:
        grant = balance.grant
        expiry = grant.expires_at or _NEVER
        return grant.priority, expiry, grant.kind == "paid", grant.granted_at, grant.id

    return sorted(balances, key=key)


def draw(
    balances: Sequence[GrantBalance], *, picos: int, credit_picos: int, at: datetime
) -> list[Draw] | None:
    """Take an amount from live grants in their order, then from the credit line; None if the two
    together do not cover it."""
    draws: list[Draw] = []
    for balance in burn_order(b for b in balances if b.grant.is_live(at=at)):
        taken = min(balance.picos, picos)
        if taken > 0:
            draws.append(Draw(balance.grant.id, taken))
            picos -= taken
    if picos > credit_picos:
        return None
    return [*draws, Draw(CREDIT_LINE, picos)] if picos else draws


@dataclass(frozen=True, slots=True)
class Funds:
    """Where a payer stands: its grants in the order in which they burn, what is held for open
    requests or leased to gateways, and its debts. `owed` is what was drawn on the credit line, below
    zero where more was paid than was owed; `invoiced` is what invoices ask for beyond the balance."""

    grants: Sequence[GrantBalance]
    held: int
    owed: int
    invoiced: int
    credit_limit: int
    currency: Currency

    @property
    def granted(self) -> int:
        """What is left of all grants."""
        return sum(balance.picos for balance in self.grants)

    def available(self, *, at: datetime) -> int:
        """What a hold can draw on at a moment: live grants, and what is left of the credit line."""
        live = sum(balance.picos for balance in self.grants if balance.grant.is_live(at=at))
        return live + self.credit_limit - self.owed
