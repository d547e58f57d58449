"""Reads where a payer's money is, and which commands have moved it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.grant import Funds, GrantBalance, burn_order
from steelyard.ledger.transaction import COMMAND_TEMPLATES
from steelyard.money import Currency
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.fund_unit import GRANT_ACCOUNT_ID, grant_of

_accounts, _grants = schema.ledger_accounts, schema.grants
_transactions, _postings = schema.ledger_transactions, schema.ledger_postings


@dataclass(frozen=True, slots=True)
class FundMovement:
    """A command, or an expiry, with what it did to what a payer has or owes."""

    id: str
    template: str
    reference: str
    booked_at: datetime
    picos: int
    actor: str | None
    reason: str | None


class SqlFundReports:
    """Answers one question at a time; `funds_of` is for those who ask more of one moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def funds_of(self, payer_id: str, *, currency: Currency) -> Funds:
        with self._database.read() as connection:
            return funds_of(connection, payer_id, currency=currency)

    def history_of(self, payer_id: str, *, limit: int) -> list[FundMovement]:
        """The newest first."""
        spendable = _postings.c.account_id.startswith(f"prepaid:{payer_id}:", autoescape=True)
        owed = _postings.c.account_id.startswith(f"receivable:{payer_id}:", autoescape=True)
        invoiced = _postings.c.account_id.startswith(f"invoiced:{payer_id}:", autoescape=True)
        query = (
            select(_transactions, func.sum(_postings.c.picos).label("picos"))
            .join(_postings, _postings.c.transaction_id == _transactions.c.id)
            .where(spendable | owed | invoiced, _transactions.c.template.in_(COMMAND_TEMPLATES))
            .group_by(*_transactions.c)
            .order_by(_transactions.c.booked_at.desc(), _transactions.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                FundMovement(
                    id=row.id,
                    template=row.template,
                    reference=row.reference,
                    booked_at=row.booked_at,
                    picos=int(row.picos),
                    actor=row.actor,
                    reason=row.reason,
                )
                for row in connection.execute(query)
            ]


def funds_of(connection: Connection, payer_id: str, *, currency: Currency) -> Funds:
    """What a payer has in each grant, what is held or leased, what it owes and may owe."""
    query = (
        select(_grants, _accounts.c.balance)
        .join(_accounts, _accounts.c.id == GRANT_ACCOUNT_ID)
        .where(_grants.c.payer_id == payer_id, _grants.c.currency == currency)
    )
    grants = [
        GrantBalance(grant_of(row), row.balance) for row in connection.execute(query) if row.balance
    ]
    held, _ = _balance_and_floor(connection, LedgerAccount("held", payer_id, currency))
    leased, _ = _balance_and_floor(connection, LedgerAccount("leased", payer_id, currency))
    line, floor = _balance_and_floor(connection, LedgerAccount("receivable", payer_id, currency))
    invoiced, _ = _balance_and_floor(connection, LedgerAccount("invoiced", payer_id, currency))
    return Funds(
        burn_order(grants),
        held=held + leased,
        owed=-line,
        invoiced=-invoiced,
        credit_limit=-floor,
        currency=currency,
    )


def _balance_and_floor(connection: Connection, account: LedgerAccount) -> tuple[int, int]:
    query = select(_accounts.c.balance, _accounts.c.floor).where(_accounts.c.id == account.id)
    row = connection.execute(query).one_or_none()
    return (row.balance, row.floor or 0) if row else (0, 0)
