"""The chart of accounts: every ledger account that we post to, and why it exists.

A posting is positive where it adds to what we owe or have earned (a credit), and negative where it
adds to what we own or are owed (a debit). So a tenant's funds and our revenue are positive, and
the payment clearing account is the negative of all the money that ever came in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, cast

from steelyard.money import Currency

AccountKind = Literal["prepaid", "held", "revenue", "clearing", "suspense"]

KINDS: Final[Mapping[AccountKind, str]] = MappingProxyType(
    {
        "prepaid": "what a tenant has paid in and can still spend (its available balance)",
        "held": "what is set aside for a tenant's requests that are not settled yet",
        "revenue": "what we have earned by answering",
        "clearing": "the other side of money that tenants pay in",
        "suspense": "amounts that two computations disagree on, until somebody decides",
    }
)

# The database refuses to let these fall below zero, whoever asks.
NEVER_NEGATIVE: Final[frozenset[AccountKind]] = frozenset({"prepaid", "held"})


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """Where an amount stands: a kind, the tenant it belongs to if any, and a currency."""

    kind: AccountKind
    tenant_id: str | None
    currency: Currency

    @property
    def id(self) -> str:
        parts = (self.kind, self.tenant_id, self.currency)
        return ":".join(part for part in parts if part is not None)


def read_account_id(account_id: str) -> LedgerAccount:
    """The account that an id names."""
    kind, *tenant, currency = account_id.split(":")
    assert kind in KINDS, f"unknown kind of ledger account: {account_id!r}"
    tenant_id = tenant[0] if tenant else None
    return LedgerAccount(cast("AccountKind", kind), tenant_id, Currency(currency))
