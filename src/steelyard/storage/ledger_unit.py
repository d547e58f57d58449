"""The ledger's store, as one unit of work on a connection.

Locks are always taken in one order, so that units of work never wait for each other in a circle:
rows of open holds, then those of leases, then the accounts of payers by currency (their grants
last), then our own accounts, then windows of budgets. A unit of work locks the funds of all its
payers in one call, and posts once.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, bindparam, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from steelyard.ledger.chart import NEVER_NEGATIVE, LedgerAccount
from steelyard.ledger.grant import Grant, GrantBalance
from steelyard.ledger.hold import (
    Hold,
    read_budget_draws,
    read_draws,
    write_budget_draws,
    write_draws,
)
from steelyard.ledger.store import BalanceTooLarge, HoldEnd, InsufficientFunds
from steelyard.ledger.transaction import Transaction
from steelyard.money import Currency, Money, write_decimal
from steelyard.storage import schema
from steelyard.storage.column_types import SQLITE_INTEGER_MAX
from steelyard.storage.prepared import PreparedStatement
from steelyard.storage.seal import seal_transaction, sealed
from steelyard.storage.set_statement import SetStatement
from steelyard.timestamp import read_timestamp, write_timestamp

PARAMETERS_MAX = 500

_accounts = schema.ledger_accounts
_HOLD_COLUMNS: Final = (
    "id, payer_id, currency, amount, source, placed_at, opened, draws, budget_draws, status"
)
# The order of locks on accounts, said once in SQL and once in Python (`_lock_order`).
_IN_LOCK_ORDER: Final = """ORDER BY a.kind NOT IN ('held', 'invoiced', 'leased', 'prepaid', 'receivable'),
    right(a.id, 3), a.kind = 'prepaid', a.id COLLATE "C" FOR UPDATE OF a"""

_LOCK_ACCOUNTS = SetStatement(
    "SELECT a.id, a.balance, a.floor FROM ledger_accounts AS a WHERE a.id IN :ids",
    locking=_IN_LOCK_ORDER,
)
_LOCK_GRANTS = SetStatement(
    """SELECT a.id, a.balance, a.floor, g.id, g.payer_id, g.kind, g.granted_at, g.expires_at,
        g.priority
    FROM grants AS g JOIN ledger_accounts AS a
        ON a.id = 'prepaid:' || g.payer_id || ':' || g.id || ':' || g.currency
    WHERE g.payer_id IN :ids AND g.currency = :currency AND a.balance > 0""",
    locking=_IN_LOCK_ORDER,
)
_SET_BALANCE = PreparedStatement(
    update(_accounts)
    .where(_accounts.c.id == bindparam("account"))
    .values(balance=bindparam("after"))
)
_INSERT_HOLD = PreparedStatement(insert(schema.open_holds))
_INSERT_TRANSACTION = PreparedStatement(insert(schema.ledger_transactions))
_INSERT_POSTING = PreparedStatement(insert(schema.ledger_postings))
_INSERT_ENDED = PreparedStatement(insert(schema.ended_holds))
_READ_HOLDS = SetStatement(f"SELECT {_HOLD_COLUMNS} FROM open_holds WHERE id IN :ids")
_LOCK_HOLDS = SetStatement(
    f"SELECT {_HOLD_COLUMNS} FROM open_holds WHERE id IN :ids",
    locking='ORDER BY id COLLATE "C" FOR UPDATE',
)
# In one order: the hold desk may have locked some of them, to let them grow.
_TAKE_HOLDS = SetStatement(
    f"DELETE FROM open_holds WHERE id IN :ids RETURNING {_HOLD_COLUMNS}",
    on_postgres=f"""WITH locked AS (
        SELECT id AS locked_id FROM open_holds WHERE id IN :ids ORDER BY id COLLATE "C" FOR UPDATE
    )
    DELETE FROM open_holds USING locked WHERE id = locked_id RETURNING {_HOLD_COLUMNS}""",
)
_HOLD_ENDS = SetStatement(
    """SELECT id, outcome, reason FROM ended_holds WHERE id IN :ids
    UNION ALL SELECT id, outcome, '' FROM usage_events WHERE id IN :ids"""
)
_GROW_HOLD = PreparedStatement(
    update(schema.open_holds)
    .where(schema.open_holds.c.id == bindparam("hold"))
    .values(
        amount=bindparam("picos"), draws=bindparam("drawn"), budget_draws=bindparam("budgets_drawn")
    )
)


class SqlLedgerUnit:
    """Implements LedgerUnit, straight on the driver where it runs for every request."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # Balances and floors that this unit has locked: nobody else can change them until it ends.
        self._locked: dict[str, tuple[int, int | None]] = {}

    def post(self, transactions: Sequence[Transaction]) -> None:
        changes: dict[LedgerAccount, int] = defaultdict(int)
        for transaction in transactions:
            self._check_size(transaction)
            for posting in transaction.postings:
                changes[posting.account] += posting.picos
        if changes:
            self._move_balances(changes)
            self._insert(transactions)

    def insert_grant(self, grant: Grant) -> None:
        row = {
            "id": grant.id,
            "payer_id": grant.payer_id,
            "kind": grant.kind,
            "currency": grant.currency,
            "priority": grant.priority,
            "granted_at": grant.granted_at,
            "expires_at": grant.expires_at,
        }
        self.connection.execute(insert(schema.grants), sealed(schema.grants, row))
        payer_id, currency = grant.payer_id, grant.currency
        # All that a hold needs is there from now on, so that no hold has to open an account.
        self._open_accounts(
            [
                LedgerAccount("held", payer_id, currency),
                LedgerAccount("leased", payer_id, currency),
                LedgerAccount("prepaid", payer_id, currency, grant.id),
                LedgerAccount("receivable", payer_id, currency),
            ]
        )

    def lock_funds(
        self, payer_ids: Collection[str], *, currency: Currency
    ) -> Mapping[str, tuple[list[GrantBalance], int]]:
        # Whoever draws on a payer locks its held account first: what is read afterwards is new.
        credit_lines = [LedgerAccount("receivable", payer_id, currency) for payer_id in payer_ids]
        held = [LedgerAccount("held", payer_id, currency) for payer_id in payer_ids]
        leased = [LedgerAccount("leased", payer_id, currency) for payer_id in payer_ids]
        self._lock([*held, *leased, *credit_lines])
        grants: dict[str, list[GrantBalance]] = {payer_id: [] for payer_id in payer_ids}
        for row in _LOCK_GRANTS.rows_in(self.connection, payer_ids, currency=currency):
            account_id, balance, floor, *columns = row
            self._locked[account_id] = int(balance), _whole(floor)
            grant = _grant_of(columns, currency)
            grants[grant.payer_id].append(GrantBalance(grant, int(balance)))
        return {
            a.tenant_id: (grants[a.tenant_id], self._room(a)) for a in credit_lines if a.tenant_id
        }

    def lock_balances(self, accounts: Collection[LedgerAccount]) -> dict[str, int]:
        """Balances by account id, which nobody else can change until the unit ends."""
        self._lock(accounts)
        return {a.id: self._locked[a.id][0] for a in accounts if a.id in self._locked}

    def set_credit_limit(self, payer_id: str, *, currency: Currency, picos: int) -> None:
        assert picos >= 0, f"a credit limit is not negative, got {picos}"
        account = LedgerAccount("receivable", payer_id, currency)
        self._check_amount(picos)
        held, leased = (
            LedgerAccount("held", payer_id, currency),
            LedgerAccount("leased", payer_id, currency),
        )
        self._open_accounts([held, leased, account])
        self._lock([account])
        balance, _ = self._locked[account.id]
        if balance < -picos:
            owed = write_decimal(-balance)
            raise InsufficientFunds(f"the tenant owes {owed} {currency} already, more than that")
        self.connection.execute(
            update(_accounts).where(_accounts.c.id == account.id).values(floor=-picos)
        )
        self._locked[account.id] = balance, -picos

    def insert_holds(self, holds: Sequence[Hold]) -> None:
        if holds:
            _INSERT_HOLD.run_each(self.connection, [_hold_row(hold) for hold in holds])

    def grow_holds(self, holds: Sequence[Hold]) -> None:
        if holds:
            grown = [
                {
                    "hold": hold.id,
                    "picos": hold.amount.picos,
                    "drawn": write_draws(hold.draws),
                    "budgets_drawn": write_budget_draws(hold.budget_draws),
                }
                for hold in holds
            ]
            _GROW_HOLD.run_each(self.connection, grown)

    def take_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        return _by_id(_TAKE_HOLDS.rows_in(self.connection, hold_ids))

    def read_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        return _by_id(_READ_HOLDS.rows_in(self.connection, hold_ids))

    def lock_holds(self, hold_ids: Collection[str]) -> dict[str, Hold]:
        return _by_id(_LOCK_HOLDS.rows_in(self.connection, hold_ids))

    def end_holds(
        self, ends: Mapping[str, str], *, end: Literal["declined", "released"], at: datetime
    ) -> None:
        if ends:
            ended_at = write_timestamp(at)
            _INSERT_ENDED.run_each(
                self.connection,
                [
                    {"id": hold_id, "outcome": end, "reason": reason, "ended_at": ended_at}
                    for hold_id, reason in ends.items()
                ],
            )

    def hold_ends(self, hold_ids: Collection[str]) -> dict[str, tuple[HoldEnd, str]]:
        rows = _HOLD_ENDS.rows_in(self.connection, hold_ids)
        return {hold_id: (outcome, reason) for hold_id, outcome, reason in rows}

    def _room(self, account: LedgerAccount) -> int:
        """How far a balance may still fall."""
        balance, floor = self._locked.get(account.id, (0, 0))
        assert floor is not None, f"{account.id} has no floor"
        return balance - floor

    def _lock(self, accounts: Collection[LedgerAccount]) -> None:
        """Read and lock those that are there and not locked yet."""
        wanted = {account.id for account in accounts} - self._locked.keys()
        for account_id, balance, floor in _LOCK_ACCOUNTS.rows_in(self.connection, wanted):
            self._locked[account_id] = int(balance), _whole(floor)

    def _move_balances(self, changes: Mapping[LedgerAccount, int]) -> None:
        self._lock(changes)
        missing = [account for account in changes if account.id not in self._locked]
        if missing:
            self._open_accounts(missing)
            self._lock(missing)
        for account, change in changes.items():
            balance, floor = self._locked[account.id]
            self._check_balance(account, balance, change=change, floor=floor)
            self._locked[account.id] = balance + change, floor
        moved = [account.id for account in sorted(changes, key=_lock_order) if changes[account]]
        after = [{"account": name, "after": self._locked[name][0]} for name in moved]
        _SET_BALANCE.run_each(self.connection, after)

    def _open_accounts(self, accounts: Collection[LedgerAccount]) -> None:
        """Open accounts at zero; another unit of work may be opening the same ones right now."""
        is_sqlite = self.connection.dialect.name == "sqlite"
        statement = (sqlite if is_sqlite else postgresql).insert(_accounts).on_conflict_do_nothing()
        for account in sorted(accounts, key=_lock_order):
            has_floor = account.kind in NEVER_NEGATIVE or account.kind == "receivable"
            row = {
                "id": account.id,
                "kind": account.kind,
                "balance": 0,
                "floor": 0 if has_floor else None,
            }
            self.connection.execute(statement, row)

    def _check_balance(
        self, account: LedgerAccount, balance: int, *, change: int, floor: int | None
    ) -> None:
        after = balance + change
        self._check_amount(after)
        if floor is None or after >= floor:
            return
        assert account.kind not in {"held", "leased"}, f"{account.id} would fall to {after}"
        room = f"{write_decimal(max(0, balance - floor))} {account.currency}"
        raise InsufficientFunds(f"{room} available, too little for {write_decimal(-change)}")

    def _check_size(self, transaction: Transaction) -> None:
        """SQLite adds the postings up, so that their sum has to fit as well as each of them."""
        self._check_amount(
            sum(posting.picos for posting in transaction.postings if posting.picos > 0)
        )

    def _check_amount(self, picos: int) -> None:
        if self.connection.dialect.name == "sqlite" and abs(picos) > SQLITE_INTEGER_MAX:
            raise BalanceTooLarge

    def _insert(self, transactions: Sequence[Transaction]) -> None:
        """Postings first: their transaction seals them."""
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
        _INSERT_TRANSACTION.run_each(
            self.connection,
            [_transaction_row(transaction) for transaction in transactions],
        )


def parts(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[i : i + PARAMETERS_MAX] for i in range(0, len(values), PARAMETERS_MAX)]


def hold_of(row: Row[Any]) -> Hold:
    """The hold that a row of `open_holds` holds, as SQLAlchemy reads it."""
    return Hold(
        id=row.id,
        payer_id=row.payer_id,
        amount=Money(row.amount, Currency(row.currency)),
        source=row.source,
        placed_at=row.placed_at,
        opened=row.opened,
        draws=tuple(read_draws(row.draws)),
        budget_draws=tuple(read_budget_draws(row.budget_draws)),
        status=row.status,
    )


def _by_id(rows: Sequence[Sequence[Any]]) -> dict[str, Hold]:
    return {row[0]: _hold_of(row) for row in rows}


def _hold_of(row: Sequence[Any]) -> Hold:
    """The hold of a row of `_HOLD_COLUMNS`, as the driver reads it."""
    hold_id, payer_id, currency, amount, source, placed_at, opened, draws, budgets, status = row
    return Hold(
        id=hold_id,
        payer_id=payer_id,
        amount=Money(int(amount), Currency(currency)),
        source=source,
        placed_at=read_timestamp(placed_at),
        opened=opened,
        draws=tuple(read_draws(draws)),
        budget_draws=tuple(read_budget_draws(budgets)),
        status=status,
    )


def _transaction_row(transaction: Transaction) -> dict[str, object]:
    """A transaction as the values of its row, sealed with its postings."""
    row: dict[str, object] = {
        "id": transaction.id,
        "template": transaction.template,
        "reference": transaction.reference,
        "booked_at": write_timestamp(transaction.booked_at),
        "actor": transaction.actor,
        "reason": transaction.reason,
    }
    postings = [(posting.account.id, posting.picos) for posting in transaction.postings]
    return {**row, "seal": seal_transaction(row.values(), postings)}


def _hold_row(hold: Hold) -> dict[str, object]:
    """A hold as the values of its row."""
    return {
        "id": hold.id,
        "payer_id": hold.payer_id,
        "currency": hold.amount.currency,
        "amount": hold.amount.picos,
        "draws": write_draws(hold.draws),
        "budget_draws": write_budget_draws(hold.budget_draws),
        "source": hold.source,
        "placed_at": write_timestamp(hold.placed_at),
        "opened": hold.opened,
        "status": hold.status,
    }


def _grant_of(columns: Sequence[Any], currency: Currency) -> Grant:
    grant_id, payer_id, kind, granted_at, expires_at, priority = columns
    return Grant(
        id=grant_id,
        payer_id=payer_id,
        kind=kind,
        currency=currency,
        granted_at=read_timestamp(granted_at),
        expires_at=read_timestamp(expires_at) if expires_at else None,
        priority=int(priority),
    )


def _whole(number: Any) -> int | None:
    return None if number is None else int(number)


def _lock_order(account: LedgerAccount) -> tuple[bool, str, bool, str]:
    """Payers' accounts before ours: those of ours are the busiest, and locked the shortest."""
    is_ours = account.kind not in {"held", "invoiced", "leased", "prepaid", "receivable"}
    return is_ours, account.currency, account.kind == "prepaid", account.id
