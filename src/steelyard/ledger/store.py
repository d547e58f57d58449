"""What the ledger needs from its store. Every method acts inside one unit of work."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

from steelyard.errors import Refusal
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.grant import Grant, GrantBalance
from steelyard.ledger.hold import Hold
from steelyard.ledger.transaction import Transaction
from steelyard.money import Currency

HoldEnd = Literal["declined", "released", "settled", "suspended"]


class InsufficientFunds(Refusal):
    """The available balance does not cover the amount."""

    code = "insufficient_funds"


class BalanceTooLarge(Refusal):
    """SQLite holds balances up to 9,223,372 units of a currency; use PostgreSQL above that."""

    code = "balance_too_large"


class LedgerUnit(Protocol):
    """The ledger as one unit of work sees it."""

    def post(self, transactions: Sequence[Transaction]) -> None:
        """Write transactions and move balances; raises InsufficientFunds and BalanceTooLarge."""
        ...

    def insert_grant(self, grant: Grant) -> None:
        """A grant with an account of its own; its money comes with a transaction."""
        ...

    def lock_funds(
        self, payer_ids: Collection[str], *, currency: Currency
    ) -> Mapping[str, tuple[list[GrantBalance], int]]:
        """By payer: the grants that have something left, and what is left of the credit line.

        Nobody else can change them until the unit ends.
        """
        ...

    def lock_balances(self, accounts: Collection[LedgerAccount]) -> dict[str, int]:
        """Balances by account id; nobody else can change them until the unit ends."""
        ...

    def set_credit_limit(self, payer_id: str, *, currency: Currency, picos: int) -> None:
        """Let a payer owe up to so much; raises InsufficientFunds if it owes more already."""
        ...

    def insert_holds(self, holds: Sequence[Hold]) -> None: ...

    def grow_holds(self, holds: Sequence[Hold]) -> None:
        """Keep a larger amount and longer draws for holds that are open."""
        ...

    def lock_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        """The open ones of these holds; nobody else can end them until the unit ends."""
        ...

    def take_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        """Read and remove open holds; whoever takes them ends them in the same unit of work."""
        ...

    def read_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        """The open ones of these holds."""
        ...

    def end_holds(
        self, ends: Mapping[str, str], *, end: Literal["declined", "released"], at: datetime
    ) -> None:
        """Remember for ever how holds ended that no event will tell of; reasons by hold id."""
        ...

    def hold_ends(self, hold_ids: Collection[str]) -> dict[str, tuple[HoldEnd, str]]:
        """Those of these holds that have ended, with the end and its reason."""
        ...
