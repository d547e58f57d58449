"""The ledger's store, as one unit of work on a connection."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from steelyard.ledger.chart import LedgerAccount, read_account_id
from steelyard.ledger.hold import Hold, HoldStatus
from steelyard.ledger.store import BalanceTooLarge, InsufficientFunds
from steelyard.ledger.transaction import Transaction
from steelyard.money import Currency, Money, write_decimal
from steelyard.storage import schema
from steelyard.storage.prepared import PreparedStatement
from steelyard.storage.schema import SQLITE_INTEGER_MAX
from steelyard.timestamp import write_timestamp

PARAMETERS_MAX = 500

_accounts = schema.ledger_accounts
_LOCK_BALANCE = PreparedStatement(
    select(_accounts.c.balance).where(_accounts.c.id == bindparam("account")).with_for_update()
)
_SET_BALANCE = PreparedStatement(
    update(_accounts)
    .where(_accounts.c.id == bindparam("account"))
    .values(balance=bindparam("after"))
)
_INSERT_HOLD = PreparedStatement(insert(schema.holds))
_INSERT_TRANSACTION = PreparedStatement(insert(schema.ledger_transactions))
_INSERT_POSTING = PreparedStatement(insert(schema.ledger_postings))


class SqlLedgerUnit:
    """Implements LedgerUnit with SQLAlchemy Core."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # Balances that this unit has locked: nobody else can change them until it ends.
        self._locked: dict[str, int] = {}

    def post(self, transactions: Sequence[Transaction]) -> None:
        changes: dict[str, int] = defaultdict(int)
        for transaction in transactions:
            for posting in transaction.postings:
                changes[posting.account.id] += posting.picos
        if not changes:
            return
        self._move_balances(changes)
        self._insert(transactions)

    def read_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        found: dict[str, Hold] = {}
        for part in parts(sorted(hold_ids)):
            query = select(schema.holds).where(schema.holds.c.id.in_(part))
            for row in self.connection.execute(query):
                found[row.id] = hold_of(row)
        return found

    def close_holds(self, hold_ids: Collection[str], *, status: HoldStatus) -> None:
        for part in parts(sorted(hold_ids)):
            closed = self.connection.execute(
                update(schema.holds)
                .where(schema.holds.c.id.in_(part), schema.holds.c.status == "placed")
                .values(status=status)
            )
            assert closed.rowcount == len(part), "a hold ended twice, or was never placed"

    def lock_balances(self, accounts: Collection[LedgerAccount]) -> dict[str, int]:
        self._lock({account.id for account in accounts})
        return dict(self._locked)

    def insert_holds(self, holds: Sequence[Hold]) -> None:
        if holds:
            _INSERT_HOLD.run_each(self.connection, [_hold_row(hold) for hold in holds])

    def _lock(self, account_ids: Collection[str]) -> None:
        """Read and lock those that are not locked yet, always in one order, so that two units of
        work never wait for each other in a circle."""
        for account_id in sorted(set(account_ids) - self._locked.keys()):
            for (balance,) in _LOCK_BALANCE.rows(self.connection, {"account": account_id}):
                self._locked[account_id] = int(balance)

    def _move_balances(self, changes: dict[str, int]) -> None:
        self._lock(changes.keys())
        missing = sorted(changes.keys() - self._locked.keys())
        if missing:
            self._open_accounts(missing)
            self._lock(changes.keys())
        for account_id, change in changes.items():
            self._locked[account_id] += change
            self._check_balance(account_id, self._locked[account_id], change=change)
        after = [{"account": name, "after": self._locked[name]} for name in sorted(changes)]
        _SET_BALANCE.run_each(self.connection, after)

    def _open_accounts(self, account_ids: Sequence[str]) -> None:
        """Open accounts at zero; another unit of work may be opening the same ones right now."""
        for account_id in account_ids:
            row = {"id": account_id, "kind": read_account_id(account_id).kind, "balance": 0}
            try:
                with self.connection.begin_nested():
                    self.connection.execute(insert(_accounts), row)
            except IntegrityError:
                continue

    def _check_balance(self, account_id: str, balance: int, *, change: int) -> None:
        account = read_account_id(account_id)
        if balance < 0 and account.kind == "prepaid":
            available = write_decimal(balance - change)
            raise InsufficientFunds(f"{available} {account.currency} available, too little")
        assert balance >= 0 or account.kind != "held", f"{account_id} would fall to {balance}"
        if self.connection.dialect.name == "sqlite" and abs(balance) > SQLITE_INTEGER_MAX:
            raise BalanceTooLarge

    def _insert(self, transactions: Sequence[Transaction]) -> None:
        _INSERT_TRANSACTION.run_each(
            self.connection,
            [
                {
                    "id": transaction.id,
                    "template": transaction.template,
                    "reference": transaction.reference,
                    "booked_at": write_timestamp(transaction.booked_at),
                    "actor": transaction.actor,
                    "reason": transaction.reason,
                }
                for transaction in transactions
            ],
        )
        _INSERT_POSTING.run_each(
            self.connection,
            [
                {
                    "transaction_id": transaction.id,
                    "account_id": posting.account.id,
                    "picos": posting.picos,
                }
                for transaction in transactions
                for posting in transaction.postings
            ],
        )


def parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[i : i + PARAMETERS_MAX] for i in range(0, len(values), PARAMETERS_MAX)]


def _hold_row(hold: Hold) -> dict[str, object]:
    """A hold as the values of its row."""
    return {
        "id": hold.id,
        "payer_id": hold.payer_id,
        "currency": hold.amount.currency,
        "amount": hold.amount.picos,
        "source": hold.source,
        "placed_at": write_timestamp(hold.placed_at),
        "opened": hold.opened,
        "status": hold.status,
    }


def hold_of(row: Row[Any]) -> Hold:
    """The hold that a row holds."""
    return Hold(
        id=row.id,
        payer_id=row.payer_id,
        amount=Money(row.amount, Currency(row.currency)),
        source=row.source,
        placed_at=row.placed_at,
        opened=row.opened,
        status=row.status,
    )
