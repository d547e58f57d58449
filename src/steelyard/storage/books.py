"""The books: ledger, holds, events and positions, in one unit of work."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from steelyard.billing.books import (
    BookedEvent,
    FundingSums,
    HeldFunds,
    Place,
    PositionMoved,
    QuarantinedEvent,
)
from steelyard.billing.event_preparation import PreparedBatch, UsagePath
from steelyard.billing.event_shares import EventShare
from steelyard.billing.hourly_sums import UsageSums
from steelyard.storage import schema
from steelyard.storage.bulk import BulkInsert, BulkSum
from steelyard.storage.chargeback_unit import SqlChargebackUnit
from steelyard.storage.database import Database
from steelyard.storage.lease_unit import SqlLeaseUnit
from steelyard.storage.quarantine_unit import SqlQuarantineUnit
from steelyard.storage.re_rating_unit import SqlReRatingUnit
from steelyard.storage.set_statement import SetStatement
from steelyard.storage.suspense_unit import SqlSuspenseUnit
from steelyard.storage.upstream_costs import SqlUpstreamUnit

_INSERT_EVENTS = BulkInsert(schema.usage_events)
_INSERT_SHARES = BulkInsert(schema.event_shares)
_ADD_USAGE = BulkSum(schema.usage_hours)
_ADD_REQUESTS = BulkSum(schema.request_hours)
_ADD_FUNDING = BulkSum(schema.funding_hours)
_LOCK_HELD_FUNDS = SetStatement(
    "SELECT id, payer_id, currency, amount, draws, budget_draws FROM open_holds WHERE id IN :ids",
    locking='ORDER BY id COLLATE "C" FOR UPDATE',
)
_REMOVE_HOLDS = SetStatement("DELETE FROM open_holds WHERE id IN :ids")
_CONTENT_HASHES = SetStatement("SELECT id, content_hash FROM usage_events WHERE id IN :ids")


class SqlBooks:
    """Implements Books."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Paths that are in the books for good; they never change.
        self._path_ids: dict[UsagePath, int] = {}

    @contextmanager
    def write(self) -> Generator["SqlBooksUnit"]:
        with self._database.write() as connection:
            unit = SqlBooksUnit(connection, path_ids=self._path_ids)
            yield unit
        self._path_ids |= unit.new_path_ids

    @contextmanager
    def read_leases(self) -> Generator[SqlLeaseUnit]:
        with self._database.read() as connection:
            yield SqlLeaseUnit(connection)


class SqlBooksUnit(
    SqlReRatingUnit, SqlSuspenseUnit, SqlQuarantineUnit, SqlChargebackUnit, SqlUpstreamUnit
):
    """Implements BooksUnit."""

    def __init__(self, connection: Connection, *, path_ids: Mapping[UsagePath, int]) -> None:
        super().__init__(connection)
        self._path_ids = path_ids
        self.set_aside: list[QuarantinedEvent] = []
        self.new_path_ids: dict[UsagePath, int] = {}

    def lock_held_funds(self, hold_ids: Collection[str]) -> dict[str, HeldFunds]:
        rows = _LOCK_HELD_FUNDS.rows_in(self.connection, hold_ids)
        return {
            hold_id: HeldFunds(payer_id, currency, int(amount), draws, budget_draws)
            for hold_id, payer_id, currency, amount, draws, budget_draws in rows
        }

    def remove_holds(self, hold_ids: Collection[str]) -> None:
        removed = _REMOVE_HOLDS.run_in(self.connection, hold_ids)
        assert removed == len(hold_ids), "a hold ended twice, or was never placed"

    def content_hashes(self, event_ids: Collection[str]) -> dict[str, bytes]:
        return {
            event_id: bytes(content_hash)
            for event_id, content_hash in _CONTENT_HASHES.rows_in(self.connection, event_ids)
        }

    def places_taken(self, places: Collection[Place]) -> set[Place]:
        table, sources = schema.usage_events, schema.event_sources
        by_source: dict[str, list[int]] = defaultdict(list)
        for source, sequence in places:
            by_source[source].append(sequence)
        taken: set[Place] = set()
        for source, sequences in by_source.items():
            query = (
                select(table.c.sequence)
                .join(sources, sources.c.id == table.c.source_id)
                .where(
                    sources.c.source == source,
                    table.c.sequence.between(min(sequences), max(sequences)),
                )
            )
            taken.update((source, row.sequence) for row in self.connection.execute(query))
        return taken & set(places)

    def path_ids(self, paths: Sequence[UsagePath]) -> list[int]:
        for path in paths:
            if path not in self._path_ids:
                self.new_path_ids[path] = self._path_id(path)
        return [self._path_ids.get(path) or self.new_path_ids[path] for path in paths]

    def insert_events(
        self,
        booked: Sequence[BookedEvent],
        batch: PreparedBatch,
        *,
        path_ids: Sequence[int],
        at: datetime,
    ) -> None:
        table = schema.event_segments
        segment_id = self.connection.execute(
            insert(table)
            .values(
                log_id=batch.log_id,
                first_position=batch.first_position,
                settled_at=at,
                event_count=batch.record_count,
                body=batch.segment,
            )
            .returning(table.c.id)
        ).scalar_one()
        sources = self._source_ids({event.event.source for event in booked})
        _INSERT_EVENTS.run(
            self.connection,
            [
                (
                    event.id,
                    sources[event.source],
                    event.sequence,
                    event.content_hash,
                    path_ids[event.path],
                    segment_id,
                    event.record,
                    event.ended_at,
                    billed_at,
                    picos,
                    event.charges,
                    spent,
                    budget_draws,
                    outcome,
                )
                for event, billed_at, picos, spent, budget_draws, outcome in booked
            ],
        )

    def insert_event_shares(self, shares: Sequence[EventShare]) -> None:
        if shares:
            _INSERT_SHARES.run(self.connection, shares)

    def add_to_hours(
        self, usage: UsageSums, funding: FundingSums, *, path_ids: Sequence[int]
    ) -> None:
        _ADD_USAGE.run(
            self.connection,
            [(path_ids[path], *rest, *sums) for (path, *rest), sums in usage.usage.items()],
        )
        _ADD_REQUESTS.run(
            self.connection,
            [(path_ids[path], hour, count) for (path, hour), count in usage.requests.items()],
        )
        _ADD_FUNDING.run(self.connection, [(*key, picos) for key, picos in funding.items()])

    def quarantine(self, events: Sequence[QuarantinedEvent], *, at: datetime) -> None:
        self.set_aside.extend(events)
        for event in events:
            row = {
                "content_hash": hashlib.sha256(event.body).hexdigest(),
                "log_id": event.log_id,
                "position": event.position,
                "reason": event.reason,
                "quarantined_at": at,
                "body": event.body.decode(errors="replace"),
            }
            self._insert_unless_there(schema.quarantined_events, row)

    def position(self, log_id: str) -> int:
        table = schema.log_positions
        query = select(table.c.position).where(table.c.log_id == log_id)
        return self.connection.execute(query).scalar_one_or_none() or 0

    def move_position(self, log_id: str, *, before: int, after: int) -> None:
        table = schema.log_positions
        moved = self.connection.execute(
            update(table)
            .where(table.c.log_id == log_id, table.c.position == before)
            .values(position=after)
        )
        if moved.rowcount == 1:
            return
        if before != 0 or self.position(log_id) != 0:
            raise PositionMoved(f"the log {log_id} is not at position {before} any more")
        try:
            self.connection.execute(insert(table), {"log_id": log_id, "position": after})
        except IntegrityError as error:
            raise PositionMoved(f"another worker has begun with the log {log_id}") from error

    def open_hold_picos(self, *, source_prefix: str) -> dict[str, int]:
        table = schema.open_holds
        is_of_source = table.c.source.startswith(source_prefix, autoescape=True)
        query = select(table.c.id, table.c.amount).where(is_of_source).order_by(table.c.id)
        return {row.id: row.amount for row in self.connection.execute(query)}

    def _path_id(self, path: UsagePath) -> int:
        """The number of a path, which may be new, or new to us."""
        table = schema.usage_paths
        known = select(table.c.id).filter_by(**path._asdict())
        path_id = self.connection.execute(known).scalar_one_or_none()
        if path_id is None:
            self._insert_unless_there(table, path._asdict())
            path_id = self.connection.execute(known).scalar_one()
        return path_id

    def _source_ids(self, sources: Collection[str]) -> dict[str, int]:
        table = schema.event_sources
        for source in sorted(sources):
            known = select(table.c.id).where(table.c.source == source)
            if self.connection.execute(known).scalar_one_or_none() is None:
                self._insert_unless_there(table, {"source": source})
        query = select(table.c.source, table.c.id).where(table.c.source.in_(sorted(sources)))
        return {row.source: row.id for row in self.connection.execute(query)}

    def _insert_unless_there(self, table: schema.Table, row: Mapping[str, object]) -> None:
        """Another unit of work may be inserting the same row right now."""
        try:
            with self.connection.begin_nested():
                self.connection.execute(insert(table), row)
        except IntegrityError:
            return
