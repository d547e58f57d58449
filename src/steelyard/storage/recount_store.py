"""Recounts in the books: what upstreams reported, beside what their own tokenizers say."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Label, case, func, insert, select

from steelyard.metering.recount import RecountRecord, drift_ppm
from steelyard.storage import schema
from steelyard.storage.database import Database
from steelyard.timestamp import read_timestamp

_recounts = schema.recounts


@dataclass(frozen=True, slots=True)
class SideSums:
    """The sums of one side, over the events of which there are two counts."""

    events: int
    reported: int
    recounted: int

    @property
    def drift_ppm(self) -> int:
        return drift_ppm(reported=self.reported, recounted=self.recounted)


@dataclass(frozen=True, slots=True)
class UpstreamDrift:
    """What the audit says of one model of one upstream; `estimates` are by a rule of thumb."""

    upstream: str
    model: str
    recounted: int
    estimates: int
    uncountable: int
    dropped: int
    input: SideSums
    output: SideSums


@dataclass(frozen=True, slots=True)
class WidestRecount:
    """An event on which the two counts differ; sides without a second count are None."""

    event_id: str
    upstream: str
    model: str
    recounted_at: datetime
    reported_input: int | None
    recounted_input: int | None
    reported_output: int | None
    recounted_output: int | None


class SqlRecountStore:
    """Takes what gateways recounted, once each, and adds it up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def position(self, log_id: str) -> int:
        """How far a gateway's recount log is in the books."""
        with self._database.read() as connection:
            return _position(connection, log_id)

    def collect(self, log_id: str, records: Sequence[tuple[int, RecountRecord]]) -> int:
        """Bring records in; those that are there already are passed over. Returns how many are
        new."""
        with self._database.write() as connection:
            position = _position(connection, log_id)
            fresh = [_row(log_id, at, record) for at, record in records if at > position]
            known = set(
                connection.execute(
                    select(_recounts.c.id).where(_recounts.c.id.in_([row["id"] for row in fresh]))
                ).scalars()
            )
            rows = [row for row in fresh if row["id"] not in known]
            if rows:
                connection.execute(insert(_recounts), rows)
            return len(rows)

    def drifts(self, *, start: datetime, end: datetime) -> list[UpstreamDrift]:
        """By upstream and model, over a period."""
        c = _recounts.c
        query = (
            select(
                c.upstream,
                c.model,
                *(_events_of(outcome) for outcome in ("recounted", "uncountable", "dropped")),
                func.coalesce(
                    func.sum(case((c.source == "estimate", c.event_count), else_=0)), 0
                ).label("estimates"),
                func.count(c.recounted_input).label("input_events"),
                func.coalesce(func.sum(c.reported_input), 0).label("reported_input"),
                func.coalesce(func.sum(c.recounted_input), 0).label("recounted_input"),
                func.count(c.recounted_output).label("output_events"),
                func.coalesce(func.sum(c.reported_output), 0).label("reported_output"),
                func.coalesce(func.sum(c.recounted_output), 0).label("recounted_output"),
            )
            .where(c.recounted_at >= start, c.recounted_at < end)
            .group_by(c.upstream, c.model)
            .order_by(c.upstream, c.model)
        )
        with self._database.read() as connection:
            return [
                UpstreamDrift(
                    upstream=row.upstream,
                    model=row.model,
                    recounted=int(row.recounted),
                    estimates=int(row.estimates),
                    uncountable=int(row.uncountable),
                    dropped=int(row.dropped),
                    input=SideSums(
                        row.input_events, int(row.reported_input), int(row.recounted_input)
                    ),
                    output=SideSums(
                        row.output_events, int(row.reported_output), int(row.recounted_output)
                    ),
                )
                for row in connection.execute(query)
            ]

    def widest(self, *, start: datetime, end: datetime, limit: int) -> list[WidestRecount]:
        """The events on which the counts differ most."""
        c = _recounts.c
        difference = func.abs(func.coalesce(c.reported_input - c.recounted_input, 0)) + func.abs(
            func.coalesce(c.reported_output - c.recounted_output, 0)
        )
        query = (
            select(_recounts)
            .where(c.outcome == "recounted", c.recounted_at >= start, c.recounted_at < end)
            .where(difference > 0)
            .order_by(difference.desc(), c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                WidestRecount(
                    event_id=row.id,
                    upstream=row.upstream,
                    model=row.model,
                    recounted_at=row.recounted_at,
                    reported_input=row.reported_input,
                    recounted_input=row.recounted_input,
                    reported_output=row.reported_output,
                    recounted_output=row.recounted_output,
                )
                for row in connection.execute(query)
            ]


def _position(connection: Connection, log_id: str) -> int:
    query = select(func.max(_recounts.c.position)).where(_recounts.c.log_id == log_id)
    return connection.execute(query).scalar() or 0


def _events_of(outcome: str) -> Label[int]:
    c = _recounts.c
    return func.coalesce(func.sum(case((c.outcome == outcome, c.event_count), else_=0)), 0).label(
        outcome
    )


def _row(log_id: str, position: int, record: RecountRecord) -> dict[str, object]:
    return {
        "log_id": log_id,
        "position": position,
        "id": record.id,
        "upstream": record.upstream,
        "model": record.model,
        "outcome": record.outcome,
        "event_count": record.event_count,
        "reported_input": record.reported_input,
        "recounted_input": record.recounted_input,
        "reported_output": record.reported_output,
        "recounted_output": record.recounted_output,
        "source": record.source,
        "pin_sha256": record.pin_sha256,
        "reason": record.reason,
        "recounted_at": read_timestamp(record.recounted_at),
    }
