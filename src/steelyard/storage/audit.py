"""Reads the whole of the books, row by row, for verification."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Table,
    TextClause,
    exists,
    func,
    select,
    text,
)

from steelyard.billing.event_preparation import UsagePath
from steelyard.billing.ledger_checks import BATCH_TEMPLATES
from steelyard.billing.stored_event import (
    AccountRow,
    AdjustmentRow,
    EventRow,
    GrantRow,
    HourRow,
    LeaseRow,
    SegmentRow,
    TransactionRow,
)
from steelyard.ledger.hold import Hold, read_budget_draws, read_draws
from steelyard.metering.event_segment import SegmentUnreadable, unpack_bodies
from steelyard.money import Currency, Money
from steelyard.pricing.price_book import CanonicalDocument
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.invoice_audit import SqlInvoiceAudit
from steelyard.storage.ledger_unit import hold_of
from steelyard.storage.seal import SEALED_TABLES, seal_row, seal_transaction
from steelyard.storage.set_statement import SetStatement
from steelyard.timestamp import write_timestamp

ROWS_AT_ONCE = 5_000

_postings, _transactions = schema.ledger_postings, schema.ledger_transactions
_EVENT_ROWS = SetStatement(
    """SELECT id, source_id, sequence, content_hash, path_id, segment_id, place, ended_at,
        billed_at, amount, charges, draws, budget_draws, outcome
    FROM usage_events WHERE id IN :ids"""
)
_SHARES = SetStatement(
    "SELECT event_id, department_id, weight, picos FROM event_shares WHERE event_id IN :ids"
)
_HOLD_CONFLICTS = """SELECT e.id FROM ended_holds AS e JOIN usage_events AS u ON u.id = e.id
    UNION SELECT h.id FROM open_holds AS h JOIN usage_events AS u ON u.id = h.id
    UNION SELECT h.id FROM open_holds AS h JOIN ended_holds AS e ON e.id = h.id"""


class SqlAudit:
    """Opens snapshots of the whole books; `SqlAuditSnapshot` implements Audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator["SqlAuditSnapshot"]:
        with self._database.read() as connection:
            yield SqlAuditSnapshot(connection)

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
        self._connection = connection.execution_options(yield_per=ROWS_AT_ONCE)
        self._known_paths: dict[int, UsagePath] = {}
        self._known_sources: dict[int, str] = {}

    def transactions(self) -> Iterator[TransactionRow]:
        """With their postings; of those that have no postings any more, the row alone."""
        columns = (_transactions, _postings.c.transaction_id, _postings.c.account_id)
        query = (
            select(*columns, _postings.c.picos)
            .select_from(
                _postings.outerjoin(_transactions, _transactions.c.id == _postings.c.transaction_id)
            )
            .order_by(_postings.c.transaction_id)
        )
        found = self._connection.execute(query)
        for transaction_id, rows in groupby(found, lambda row: row.transaction_id):
            parts = list(rows)
            yield _transaction(transaction_id, parts[0], {p.account_id: p.picos for p in parts})
        has_postings = exists().where(_postings.c.transaction_id == _transactions.c.id)
        for row in self._connection.execute(select(_transactions).where(~has_postings)):
            yield _transaction(row.id, row, {})

    def accounts(self) -> Sequence[AccountRow]:
        rows = self._connection.execute(select(schema.ledger_accounts))
        return [AccountRow(row.id, row.kind, row.balance, row.floor) for row in rows]

    def balances(self) -> Mapping[str, int]:
        return {account.id: account.balance for account in self.accounts()}

    def grants(self) -> Mapping[str, GrantRow]:
        rows = self._connection.execute(select(schema.grants))
        return {row.id: GrantRow(row.id, row.payer_id, row.kind, row.currency) for row in rows}

    def adjustments(self) -> Mapping[str, AdjustmentRow]:
        rows = self._connection.execute(select(schema.adjustments))
        return {
            row.id: AdjustmentRow(
                row.id,
                row.kind,
                row.payer_id,
                row.currency,
                row.amount,
                row.draws,
                row.reference,
            )
            for row in rows
        }

    def chargebacks(self) -> Mapping[str, str]:
        rows = self._connection.execute(
            select(schema.chargebacks.c.id, schema.chargebacks.c.canonical)
        )
        return {row.id: row.canonical for row in rows}

    def decisions(self) -> Mapping[str, int]:
        decisions = schema.suspense_decisions
        rows = self._connection.execute(select(decisions.c.event_id, decisions.c.amount))
        return {row.event_id: row.amount for row in rows}

    def holds(self) -> Iterator[Hold]:
        for row in self._connection.execute(select(schema.open_holds)):
            yield hold_of(row)

    def leases(self) -> Sequence[LeaseRow]:
        rows = self._connection.execute(select(schema.leases))
        return [
            LeaseRow(
                row.id,
                row.payer_id,
                Money(row.amount, Currency(row.currency)),
                read_draws(row.draws),
                read_budget_draws(row.budget_draws),
            )
            for row in rows
        ]

    def hold_conflicts(self) -> list[str]:
        return [row.id for row in self._connection.execute(text(_HOLD_CONFLICTS))]

    def budget_windows(self) -> Mapping[tuple[str, str], tuple[int, int]]:
        rows = self._connection.execute(select(schema.budget_windows))
        return {(row.budget_id, row.window_name): (row.reserved, row.used) for row in rows}

    def segments(self) -> Iterator[SegmentRow]:
        table = schema.event_segments
        query = select(table.c.id, table.c.log_id, table.c.first_position, table.c.event_count)
        for row in self._connection.execute(query.order_by(table.c.log_id, table.c.first_position)):
            bodies = self._bodies(row.id)
            yield SegmentRow(row.id, row.log_id, row.first_position, row.event_count, bodies)

    def record_count(self) -> int:
        """How many records `segments` will bring, as far as they say themselves."""
        query = select(func.sum(schema.event_segments.c.event_count))
        return int(self._connection.execute(query).scalar_one() or 0)

    def event_rows(self, event_ids: Collection[str]) -> Mapping[str, EventRow]:
        paths, sources = self._paths(), self._sources()
        found: dict[str, EventRow] = {}
        for row in _EVENT_ROWS.rows_in(self._connection, event_ids):
            event_id, source_id, sequence, content_hash, path_id, *rest = row
            segment_id, place, ended_at, billed_at, amount, charges, draws, budgets, outcome = rest
            found[event_id] = EventRow(
                id=event_id,
                source=sources.get(source_id, f"unknown source {source_id}"),
                sequence=sequence,
                content_hash=bytes(content_hash),
                path=paths.get(path_id, _NO_PATH),
                segment_id=segment_id,
                place=place,
                ended_at=ended_at,
                billed_at=billed_at,
                amount=int(amount),
                charges=charges,
                draws=draws,
                budget_draws=budgets,
                outcome=outcome,
            )
        return found

    def event_shares(
        self, event_ids: Collection[str]
    ) -> Mapping[str, Mapping[str, tuple[int, int]]]:
        found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for event_id, department, weight, picos in _SHARES.rows_in(self._connection, event_ids):
            found[event_id][department] = int(weight), int(picos)
        return found

    def event_share_count(self) -> int:
        return self._count(schema.event_shares)

    def event_count(self) -> int:
        return self._count(schema.usage_events)

    def batch_postings(self, batch: str) -> Sequence[tuple[str, Mapping[str, int]]]:
        query = (
            select(_transactions.c.id, _postings.c.account_id, _postings.c.picos)
            .join(_postings, _postings.c.transaction_id == _transactions.c.id)
            .where(
                _transactions.c.reference == batch,
                _transactions.c.template.in_(sorted(BATCH_TEMPLATES)),
            )
        )
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for row in self._connection.execute(query):
            found[row.id][row.account_id] = row.picos
        return list(found.items())

    def positions(self) -> Mapping[str, int]:
        rows = self._connection.execute(select(schema.log_positions))
        return {row.log_id: row.position for row in rows}

    def quarantined_hashes(self) -> frozenset[bytes]:
        rows = self._connection.execute(select(schema.quarantined_events.c.content_hash))
        return frozenset(bytes.fromhex(row.content_hash) for row in rows)

    def invoice_audit(self) -> SqlInvoiceAudit:
        return SqlInvoiceAudit(self._connection)

    def period_ends(self) -> Mapping[str, frozenset[str]]:
        invoices = schema.invoices
        ends: dict[str, set[str]] = defaultdict(set)
        rows = self._connection.execute(select(invoices.c.organisation_id, invoices.c.period_end))
        for row in rows:
            ends[row.organisation_id].add(write_timestamp(row.period_end))
        return {organisation: frozenset(moments) for organisation, moments in ends.items()}

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

    def tampered_documents(self) -> Sequence[str]:
        found = [
            f"price version {sha256}"
            for sha256, canonical in self._prices()
            if _hash(canonical) != sha256
        ]
        found += self._tampered_publications()
        invoices = schema.invoices
        rows = self._connection.execute(
            select(invoices.c.id, invoices.c.number, invoices.c.canonical)
        )
        found += [f"invoice {row.number}" for row in rows if _hash(row.canonical) != row.id]
        for table in SEALED_TABLES:
            key = next(iter(table.primary_key.columns)).name
            for row in self._connection.execute(select(table)).mappings():
                if row["seal"] != seal_row(table, {**row}):
                    found.append(f"{table.name} {row[key]}")
        return found

    def document_count(self) -> int:
        return sum(
            self._count(table) for table in (schema.price_versions, schema.invoices, *SEALED_TABLES)
        )

    def tampered_runs(self) -> Sequence[str]:
        """The digest of an approved run is that of its events, in the order of their ids."""
        runs, events = schema.re_rating_runs, schema.re_rated_events
        query = select(runs.c.id, runs.c.canonical).where(runs.c.approved_at.is_not(None))
        expected: dict[str, str] = {
            row.id: json.loads(row.canonical)["digest"] for row in self._connection.execute(query)
        }
        digests: dict[str, Any] = defaultdict(hashlib.sha256)
        ordered = select(events).order_by(events.c.run_id, events.c.event_id)
        for row in self._connection.execute(ordered):
            line = f"{row.event_id}:{row.amount_before}:{row.amount_after}\n"
            digests[row.run_id].update(line.encode())
        found: dict[str, str] = {run_id: digest.hexdigest() for run_id, digest in digests.items()}
        names = sorted(expected.keys() | found.keys())
        return [f"re-rating {run}" for run in names if found.get(run) != expected.get(run)]

    def suspended_count(self) -> int:
        events = schema.usage_events
        is_suspended = text("outcome = 'suspended'")
        return self._count_without(events, schema.suspense_decisions.c.event_id, is_suspended)

    def quarantined_count(self) -> int:
        return self._count_without(
            schema.quarantined_events, schema.quarantine_dismissals.c.content_hash
        )

    def _tampered_publications(self) -> list[str]:
        """Published books are numbered without a gap, and called what they call themselves."""
        prices = schema.price_versions
        query = select(prices.c.name, prices.c.publication, prices.c.canonical)
        found: list[str] = []
        rows = self._connection.execute(query.order_by(prices.c.publication))
        for number, row in enumerate(rows, start=1):
            if row.publication != number or f'"name":"{row.name}"' not in row.canonical:
                found.append(f"price book {row.name}, or one before it,")
        return found

    def _hours(self, table: Table, paths: Mapping[int, UsagePath]) -> Iterator[HourRow]:
        width = len(table.primary_key.columns)
        for row in self._connection.execute(select(table)):
            first, *rest = row[:width]
            key = (paths.get(first, _NO_PATH) if table.c[0].name == "path_id" else first, *rest)
            yield HourRow(table.name, key, tuple(int(value) for value in row[width:]))

    def _paths(self) -> dict[int, UsagePath]:
        if not self._known_paths:
            rows = self._connection.execute(select(schema.usage_paths))
            self._known_paths = {row.id: UsagePath(*row[1:]) for row in rows}
        return self._known_paths

    def _sources(self) -> dict[int, str]:
        if not self._known_sources:
            rows = self._connection.execute(select(schema.event_sources))
            self._known_sources = {row.id: row.source for row in rows}
        return self._known_sources

    def _bodies(self, segment_id: int) -> list[bytes]:
        segments = schema.event_segments
        query = select(segments.c.body).where(segments.c.id == segment_id)
        body: bytes = self._connection.execute(query).scalar_one()
        try:
            return unpack_bodies(bytes(body))
        except SegmentUnreadable:
            return []

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


_NO_PATH = UsagePath(*["unknown"] * len(UsagePath._fields))


def _transaction(transaction_id: str, row: Row[Any], postings: Mapping[str, int]) -> TransactionRow:
    head = row.id, row.template, row.reference, row.booked_at, row.actor, row.reason
    is_sealed = row.id is not None and row.seal == seal_transaction(head, postings.items())
    return TransactionRow(
        transaction_id, row.template, row.reference or "", postings, is_sealed=is_sealed
    )


def _hash(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()
