"""The chart of accounts: every ledger account that we post to, and why it exists.

A posting is positive where it adds to what we owe or have earned (a credit), and negative where it
adds to what we own, are owed or have spent (a debit). So a tenant's funds and our revenue are
positive, and the payment clearing account is the negative of all the money that ever came in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, cast

from steelyard.money import Currency

AccountKind = Literal[
    "prepaid",
    "held",
    "leased",
    "receivable",
    "invoiced",
    "revenue",
    "clearing",
    "promo_expense",
    "breakage",
    "rounding",
    "tax",
    "write_off",
    "suspense",
    "upstream_cost",
    "upstream_payable",
]

KINDS: Final[Mapping[AccountKind, str]] = MappingProxyType(
    {
        "prepaid": "what is left of one grant of a tenant, and can still be spent",
        "held": "what is set aside for a tenant's requests that are not settled yet",
        "leased": "what gateways may hold of a tenant's money without asking, until it is settled",
        "receivable": "the negative of what a post-paid tenant owes us",
        "invoiced": "the negative of tax and rounding that invoices ask for beyond a balance",
        "revenue": "what we have earned by answering",
        "clearing": "the other side of money that tenants pay in or get back",
        "promo_expense": "the other side of credit that we give away",
        "breakage": "paid credit that expired unspent",
        "rounding": "what invoices round to the minor unit, carried forward",
        "tax": "tax that we invoice and owe to the state",
        "write_off": "what tenants owed and will not pay",
        "suspense": "amounts that two computations disagree on, until somebody decides",
        "upstream_cost": "the negative of what an upstream has charged us",
        "upstream_payable": "what we owe an upstream",
    }
)

# The database refuses to let these fall below zero, whoever asks. A receivable has a floor of its
# own: the negative of the tenant's credit limit.
NEVER_NEGATIVE: Final[frozenset[AccountKind]] = frozenset({"prepaid", "held", "leased"})


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """Where an amount stands: a kind, the tenant and the grant it belongs to, and a currency.

    Accounts of upstreams have the upstream's name in the tenant's place.
    """

    kind: AccountKind
    tenant_id: str | None
    currency: Currency
    grant_id: str | None = None

    def __post_init__(self) -> None:
        assert (self.kind == "prepaid") == (self.grant_id is not None), (
            f"prepaid money, and no other, belongs to a grant: {self.kind} {self.grant_id}"
        )

    @property
    def id(self) -> str:
        if self.grant_id is not None:
            return f"{self.kind}:{self.tenant_id}:{self.grant_id}:{self.currency}"
        if self.tenant_id is not None:
            return f"{self.kind}:{self.tenant_id}:{self.currency}"
        return f"{self.kind}:{self.currency}"


def read_account_id(account_id: str) -> LedgerAccount:
    """The account that an id names."""
    kind, *owner, currency = account_id.split(":")
    assert kind in KINDS, f"unknown kind of ledger account: {account_id!r}"
    tenant_id = owner[0] if owner else None
    grant_id = owner[1] if len(owner) > 1 else None
    return LedgerAccount(cast("AccountKind", kind), tenant_id, Currency(currency), grant_id)
