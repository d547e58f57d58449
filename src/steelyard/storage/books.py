"""The books: ledger, holds, events and positions, in one unit of work."""

from collections import defaultdict
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from steelyard.billing.books import Place, PositionMoved, QuarantinedEvent, RatedEvent
from steelyard.ledger.hold import Hold
from steelyard.money import read_decimal
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.storage.ledger_unit import SqlLedgerUnit, hold_of, parts
from steelyard.timestamp import read_timestamp


class SqlBooks:
    """Implements Books."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def write(self) -> Generator["SqlBooksUnit"]:
        with self._database.write() as connection:
            yield SqlBooksUnit(connection)


class SqlBooksUnit(SqlLedgerUnit):
    """Implements BooksUnit."""

    def content_hashes(self, event_ids: Collection[str]) -> dict[str, str]:
        table = schema.usage_events
        found: dict[str, str] = {}
        for part in parts(sorted(event_ids)):
            query = select(table.c.id, table.c.content_hash).where(table.c.id.in_(part))
            found.update({row.id: row.content_hash for row in self.connection.execute(query)})
        return found

    def places_taken(self, places: Collection[Place]) -> set[Place]:
        table = schema.usage_events
        by_source: dict[str, list[int]] = defaultdict(list)
        for source, sequence in places:
            by_source[source].append(sequence)
        taken: set[Place] = set()
        for source, sequences in by_source.items():
            query = select(table.c.sequence).where(
                table.c.source == source,
                table.c.sequence.between(min(sequences), max(sequences)),
            )
            taken.update((source, row.sequence) for row in self.connection.execute(query))
        return taken & set(places)

    def insert_events(self, events: Sequence[RatedEvent], *, at: datetime) -> None:
        self.connection.execute(
            insert(schema.usage_events),
            [_event_row(event, at=at) for event in events],
        )
        lines = [
            {
                "event_id": event.event.id,
                "meter": line.meter,
                "count": line.count,
                "picos_per_unit": line.picos_per_unit,
                "picos": line.picos,
            }
            for event in events
            for line in event.lines
        ]
        if lines:
            self.connection.execute(insert(schema.charge_lines), lines)

    def quarantine(self, events: Sequence[QuarantinedEvent], *, at: datetime) -> None:
        for event in events:
            row = {
                "content_hash": event.content_hash,
                "log_id": event.log_id,
                "position": event.position,
                "reason": event.reason,
                "quarantined_at": at,
                "body": event.body.decode(errors="replace"),
            }
            try:
                with self.connection.begin_nested():
                    self.connection.execute(insert(schema.quarantined_events), row)
            except IntegrityError:
                continue

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

    def open_holds(self, *, source_prefix: str) -> list[Hold]:
        table = schema.holds
        query = select(table).where(
            table.c.status == "placed", table.c.source.startswith(source_prefix, autoescape=True)
        )
        return [hold_of(row) for row in self.connection.execute(query.order_by(table.c.id))]


def _event_row(rated: RatedEvent, *, at: datetime) -> dict[str, object]:
    event, record = rated.event, rated.event.data
    return {
        "id": event.id,
        "source": event.source,
        "sequence": int(event.sequence),
        "content_hash": rated.content_hash,
        "organisation_id": record.organisation_id,
        "department_id": record.department_id,
        "key_id": record.key_id,
        "payer_id": record.payer_id,
        "model": record.model_served,
        "ended_at": read_timestamp(record.ended_at),
        "settled_at": at,
        "currency": record.currency,
        "amount": read_decimal(record.amount),
        "outcome": rated.outcome,
        "body": rated.body.decode(),
    }
