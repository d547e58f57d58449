"""What the ledger needs from its store. Every method acts inside one unit of work."""

from collections.abc import Collection, Sequence
from typing import Protocol

from steelyard.errors import Refusal
from steelyard.ledger.hold import Hold, HoldStatus
from steelyard.ledger.transaction import Transaction


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

    def insert_holds(self, holds: Sequence[Hold]) -> None: ...

    def read_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]: ...

    def close_holds(self, hold_ids: Collection[str], *, status: HoldStatus) -> None:
        """End placed holds; a hold that is not placed any more is a bug."""
        ...
