"""Reads the books for reconciliation: small tables whole, the log by segments, large sums seldom."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import Select, func, select, text

from steelyard.billing.reconciliation import HoldFigures
from steelyard.billing.stored_event import SegmentRow
from steelyard.storage import schema
from steelyard.storage.audit import SqlAuditSnapshot
from steelyard.storage.column_types import Picos
from steelyard.storage.database import Database

_segments, _events, _postings = (
    schema.event_segments,
    schema.usage_events,
    schema.ledger_postings,
)
_EARNING = ("settle_holds", "settle_leased")


class _Place(msgspec.Struct):
    source: str
    sequence: str


class SqlReconciledBooks(SqlAuditSnapshot):
    """Implements ReconciledBooks."""

    def held_by_account(self) -> Mapping[str, int]:
        holds = schema.open_holds
        query = select(holds.c.payer_id, holds.c.currency, func.sum(holds.c.amount, type_=Picos()))
        rows = self._connection.execute(query.group_by(holds.c.payer_id, holds.c.currency))
        return {f"held:{payer}:{currency}": int(picos) for payer, currency, picos in rows}

    def leased_by_account(self) -> Mapping[str, int]:
        leases = schema.leases
        query = select(
            leases.c.payer_id, leases.c.currency, func.sum(leases.c.amount, type_=Picos())
        )
        rows = self._connection.execute(query.group_by(leases.c.payer_id, leases.c.currency))
        return {f"leased:{payer}:{currency}": int(picos) for payer, currency, picos in rows}

    def hold_figures(self) -> HoldFigures:
        holds = schema.open_holds
        query = select(func.count(), func.sum(holds.c.amount, type_=Picos()))
        is_unresolved = holds.c.status == "unresolved"
        count, picos = self._connection.execute(query.where(is_unresolved)).one()
        whole = self._connection.execute(select(func.count()).select_from(holds)).scalar_one()
        return HoldFigures(whole, count, picos or 0)

    def suspended_picos(self) -> int:
        decisions = schema.suspense_decisions
        query = (
            select(func.sum(_events.c.amount, type_=Picos()))
            .select_from(_events.outerjoin(decisions, decisions.c.event_id == _events.c.id))
            .where(decisions.c.event_id.is_(None), text("outcome = 'suspended'"))
        )
        return int(self._connection.execute(query).scalar_one() or 0)

    def log_end(self, log_id: str) -> int:
        query = select(_segments.c.first_position, _segments.c.event_count)
        newest = query.where(_segments.c.log_id == log_id).order_by(
            _segments.c.first_position.desc()
        )
        row = self._connection.execute(newest.limit(1)).first()
        return row.first_position + row.event_count - 1 if row else 0

    def segment_after(self, log_id: str, position: int) -> SegmentRow | None:
        query = select(_segments.c.id, _segments.c.first_position, _segments.c.event_count)
        following = query.where(
            _segments.c.log_id == log_id, _segments.c.first_position > position
        ).order_by(_segments.c.first_position)
        row = self._connection.execute(following.limit(1)).first()
        if row is None:
            return None
        bodies = self._bodies(row.id)
        return SegmentRow(row.id, log_id, row.first_position, row.event_count, bodies)

    def sequences(self) -> Mapping[str, tuple[int, int]]:
        query = select(_events.c.source_id, func.count(), func.max(_events.c.sequence))
        sources = self._sources()
        rows = self._connection.execute(query.group_by(_events.c.source_id))
        return {sources.get(row[0], str(row[0])): (row[1], row[2]) for row in rows}

    def sequences_of(self, source: str) -> Sequence[int]:
        sources = schema.event_sources
        query = (
            select(_events.c.sequence)
            .join(sources, sources.c.id == _events.c.source_id)
            .where(sources.c.source == source)
            .order_by(_events.c.sequence)
        )
        return [row.sequence for row in self._connection.execute(query)]

    def quarantined_places(self) -> Collection[tuple[str, int]]:
        rows = self._connection.execute(select(schema.quarantined_events.c.body))
        return [place for row in rows if (place := _place_in(row.body))]

    def posted_by_account(self) -> Mapping[str, int]:
        query = select(_postings.c.account_id, func.sum(_postings.c.picos, type_=Picos()))
        rows = self._connection.execute(query.group_by(_postings.c.account_id))
        return {account_id: int(picos) for account_id, picos in rows}

    def settled_by_currency(self) -> Mapping[str, tuple[int, int, int]]:
        paths = schema.usage_paths
        events = self._by_currency(
            select(paths.c.currency, func.sum(_events.c.amount, type_=Picos()))
            .join(_events, _events.c.path_id == paths.c.id)
            .where(_events.c.outcome == "settled")
            .group_by(paths.c.currency)
        )
        hours = schema.usage_hours
        summed = self._by_currency(
            select(paths.c.currency, func.sum(hours.c.picos, type_=Picos()))
            .join(hours, hours.c.path_id == paths.c.id)
            .group_by(paths.c.currency)
        )
        transactions = schema.ledger_transactions
        posted = self._by_currency(
            select(_postings.c.account_id, func.sum(_postings.c.picos, type_=Picos()))
            .join(transactions, transactions.c.id == _postings.c.transaction_id)
            .where(
                _postings.c.account_id.startswith("revenue:"),
                transactions.c.template.in_(_EARNING),
            )
            .group_by(_postings.c.account_id)
        )
        currencies = events.keys() | summed.keys() | posted.keys()
        return {c: (events.get(c, 0), posted.get(c, 0), summed.get(c, 0)) for c in currencies}

    def _by_currency(self, query: Select[Any, Any]) -> dict[str, int]:
        rows = self._connection.execute(query)
        return {name.rpartition(":")[2]: int(picos) for name, picos in rows}


class SqlReconciliation:
    """Opens the books at one moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self) -> Generator[SqlReconciledBooks]:
        with self._database.read() as connection:
            yield SqlReconciledBooks(connection)


def _place_in(body: str) -> tuple[str, int] | None:
    """The place that a record in quarantine says that it has; it may say anything."""
    try:
        place = msgspec.json.decode(body, type=_Place)
        return place.source, int(place.sequence)
    except (msgspec.DecodeError, ValueError):
        return None
