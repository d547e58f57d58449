"""Reads the whole of the books, row by row, for verification."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Column, ColumnElement, Connection, Table, TextClause, func, select, text

from steelyard.billing.event_preparation import UsagePath
from steelyard.billing.ledger_checks import PostingRow
from steelyard.billing.stored_event import EventRow, HourRow
from steelyard.ledger.hold import Hold
from steelyard.metering.event_segment import unpack_bodies
from steelyard.pricing.price_book import CanonicalDocument
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.ledger_unit import hold_of
from steelyard.timestamp import write_timestamp

ROWS_AT_ONCE = 5_000


class SqlAudit:
    """Opens snapshots of the whole books; `SqlAuditSnapshot` implements Audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator["SqlAuditSnapshot"]:
        with self._database.read() as connection:
            yield SqlAuditSnapshot(connection.execution_options(yield_per=ROWS_AT_ONCE))

    def price_documents(self) -> Mapping[str, CanonicalDocument]:
        with self.snapshot() as snapshot:
            return snapshot.price_documents()

    def waiting_counts(self) -> tuple[int, int]:
        """How many events wait in suspense, and how many records in quarantine."""
        with self.snapshot() as snapshot:
            return snapshot.suspended_count(), snapshot.quarantined_count()

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
        for row in self._connection.execute(select(schema.open_holds)):
            yield hold_of(row)

    def budget_reservations(self) -> Mapping[tuple[str, str], int]:
        windows = schema.budget_windows
        rows = self._connection.execute(select(windows).where(windows.c.reserved != 0))
        return {(row.budget_id, row.window_name): row.reserved for row in rows}

    def events(self) -> Iterator[EventRow]:
        events, sources, segments = (
            schema.usage_events,
            schema.event_sources,
            schema.event_segments,
        )
        paths = self._paths()
        query = (
            select(events, sources.c.source, segments.c.log_id, segments.c.first_position)
            .join(sources, sources.c.id == events.c.source_id)
            .join(segments, segments.c.id == events.c.segment_id)
            .order_by(sources.c.source, events.c.sequence)
        )
        segment, bodies = 0, list[bytes]()
        for row in self._connection.execute(query):
            if row.segment_id != segment:
                segment, bodies = row.segment_id, self._bodies(row.segment_id)
            place: int = row.place
            yield EventRow(
                id=row.id,
                source=row.source,
                sequence=row.sequence,
                content_hash=bytes(row.content_hash),
                path=paths[row.path_id],
                batch=f"{row.log_id}/{row.first_position}",
                ended_at=write_timestamp(row.ended_at),
                billed_at=write_timestamp(row.billed_at),
                amount=row.amount,
                charges=row.charges,
                draws=row.draws,
                outcome=row.outcome,
                body=bodies[place],
            )

    def hours(self) -> Iterator[HourRow]:
        paths = self._paths()
        for table in (schema.usage_hours, schema.request_hours, schema.funding_hours):
            yield from self._hours(table, paths)

    def price_documents(self) -> Mapping[str, CanonicalDocument]:
        return {
            sha256: json.loads(canonical)
            for sha256, canonical in self._prices()
            if _hash(canonical) == sha256
        }

    def tampered_prices(self) -> Sequence[str]:
        return [sha256 for sha256, canonical in self._prices() if _hash(canonical) != sha256]

    def tampered_invoices(self) -> Sequence[str]:
        invoices = schema.invoices
        rows = self._connection.execute(
            select(invoices.c.id, invoices.c.number, invoices.c.canonical)
        )
        return [row.number for row in rows if _hash(row.canonical) != row.id]

    def invoice_count(self) -> int:
        return self._count(schema.invoices)

    def quarantined_count(self) -> int:
        return self._count_without(
            schema.quarantined_events, schema.quarantine_dismissals.c.content_hash
        )

    def suspended_count(self) -> int:
        events = schema.usage_events
        is_suspended = text("outcome = 'suspended'")
        return self._count_without(events, schema.suspense_decisions.c.event_id, is_suspended)

    def _hours(self, table: Table, paths: Mapping[int, UsagePath]) -> Iterator[HourRow]:
        width = len(table.primary_key.columns)
        for row in self._connection.execute(select(table)):
            first, *rest = row[:width]
            key = (paths[first] if table.c[0].name == "path_id" else first, *rest)
            yield HourRow(table.name, key, tuple(int(value) for value in row[width:]))

    def _paths(self) -> dict[int, UsagePath]:
        rows = self._connection.execute(select(schema.usage_paths))
        return {row.id: UsagePath(*row[1:]) for row in rows}

    def _bodies(self, segment_id: int) -> list[bytes]:
        segments = schema.event_segments
        query = select(segments.c.body).where(segments.c.id == segment_id)
        body: bytes = self._connection.execute(query).scalar_one()
        return unpack_bodies(body)

    def _prices(self) -> list[tuple[str, str]]:
        prices = schema.price_versions
        rows = self._connection.execute(select(prices.c.sha256, prices.c.canonical))
        return [(row.sha256, row.canonical) for row in rows]

    def _count_without(
        self, table: Table, decided: Column[str], *conditions: ColumnElement[bool] | TextClause
    ) -> int:
        """The rows about which nobody has decided yet."""
        [name] = table.primary_key.columns
        query = (
            select(func.count())
            .select_from(table.outerjoin(decided.table, decided == name))
            .where(decided.is_(None), *conditions)
        )
        return self._connection.execute(query).scalar_one()

    def _count(self, table: Table) -> int:
        query = select(func.count()).select_from(table)
        return self._connection.execute(query).scalar_one()


def _hash(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()
