"""Reads the whole of the books, row by row, for verification."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, func, select

from steelyard.billing.verification import EventRow, PostingRow
from steelyard.ledger.hold import Hold
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.ledger_unit import hold_of

ROWS_AT_ONCE = 5_000


class SqlAudit:
    """Opens snapshots of the whole books; `SqlAuditSnapshot` implements Audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator["SqlAuditSnapshot"]:
        with self._database.read() as connection:
            yield SqlAuditSnapshot(connection.execution_options(yield_per=ROWS_AT_ONCE))

    def price_documents(self) -> Mapping[str, Mapping[str, Any]]:
        with self.snapshot() as snapshot:
            return snapshot.price_documents()

    def price_count(self) -> int:
        with self._database.read() as connection:
            return connection.execute(
                select(func.count()).select_from(schema.price_versions)
            ).scalar_one()


class SqlAuditSnapshot:
    """Implements Audit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def postings(self) -> Iterator[PostingRow]:
        postings, transactions = schema.ledger_postings, schema.ledger_transactions
        query = select(
            postings.c.transaction_id,
            transactions.c.template,
            transactions.c.reference,
            postings.c.account_id,
            postings.c.picos,
        ).join(transactions, transactions.c.id == postings.c.transaction_id)
        for row in self._connection.execute(query):
            yield PostingRow(
                row.transaction_id, row.template, row.reference, row.account_id, row.picos
            )

    def balances(self) -> Mapping[str, int]:
        accounts = schema.ledger_accounts
        rows = self._connection.execute(select(accounts.c.id, accounts.c.balance))
        return {row.id: row.balance for row in rows}

    def holds(self) -> Iterator[Hold]:
        for row in self._connection.execute(select(schema.holds)):
            yield hold_of(row)

    def events(self) -> Iterator[EventRow]:
        events, lines = schema.usage_events, schema.charge_lines
        sums = (
            select(lines.c.event_id, func.sum(lines.c.picos).label("picos"))
            .group_by(lines.c.event_id)
            .subquery()
        )
        query = (
            select(events, func.coalesce(sums.c.picos, 0).label("line_picos"))
            .outerjoin(sums, sums.c.event_id == events.c.id)
            .order_by(events.c.source, events.c.sequence)
        )
        for row in self._connection.execute(query):
            yield EventRow(
                id=row.id,
                source=row.source,
                sequence=row.sequence,
                content_hash=row.content_hash,
                amount=row.amount,
                outcome=row.outcome,
                body=row.body.encode(),
                line_picos=int(row.line_picos),
            )

    def price_documents(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            sha256: json.loads(canonical)
            for sha256, canonical in self._prices()
            if _hash(canonical) == sha256
        }

    def tampered_prices(self) -> Sequence[str]:
        return [sha256 for sha256, canonical in self._prices() if _hash(canonical) != sha256]

    def quarantined_count(self) -> int:
        query = select(func.count()).select_from(schema.quarantined_events)
        return self._connection.execute(query).scalar_one()

    def _prices(self) -> list[tuple[str, str]]:
        prices = schema.price_versions
        rows = self._connection.execute(select(prices.c.sha256, prices.c.canonical))
        return [(row.sha256, row.canonical) for row in rows]


def _hash(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()
