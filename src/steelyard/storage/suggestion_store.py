"""What became of suggestions: shown, accepted, and what that comes to for each model."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from steelyard.access.tenant import Organisation
from steelyard.metering.event_segment import unpack_bodies
from steelyard.storage import schema
from steelyard.storage.database import Database

ENDPOINT: Final = "/v1/completions"
FeedbackKind = Literal["shown", "accepted"]

_feedback, _events, _paths = schema.suggestion_feedback, schema.usage_events, schema.usage_paths
_segments, _departments = schema.event_segments, schema.departments


@dataclass(frozen=True, slots=True)
class SuggestionSums:
    """The completions of one model for one department, and what became of them."""

    department: str
    model: str
    currency: str
    suggestions: int
    shown: int
    accepted: int
    picos: int


class _Record(msgspec.Struct):
    endpoint: str


class _Event(msgspec.Struct):
    id: str
    data: _Record


_decoder = msgspec.json.Decoder(_Event)


class SqlSuggestionStore:
    """Keeps feedback, and adds it up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, event_id: str, kinds: Sequence[FeedbackKind], *, organisation_id: str, at: datetime
    ) -> None:
        """Keep what an editor tells; what it told before stays as it was told first."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        statement = dialect.insert(_feedback).on_conflict_do_nothing()
        rows = [
            {"event_id": event_id, "kind": kind, "organisation_id": organisation_id, "told_at": at}
            for kind in kinds
        ]
        with self._database.write() as connection:
            connection.execute(statement, rows)

    def kinds_of(self, event_id: str) -> set[str]:
        """What was told of a suggestion."""
        query = select(_feedback.c.kind).where(_feedback.c.event_id == event_id)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def sums(
        self, organisation: Organisation, *, start: datetime, end: datetime
    ) -> list[SuggestionSums]:
        """By department and model, over completions that ended in a period; of each pair of which
        there is any feedback, every completion counts."""
        with self._database.read() as connection:
            told = _told(connection, organisation)
            paths = _paths_told_of(connection, organisation)
            counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
            for event_id, path_id, picos in _completions(connection, list(paths), start, end):
                kinds = told.get(event_id, set[str]())
                added = (1, bool(kinds), "accepted" in kinds, picos)
                counts[paths[path_id]] = [
                    before + one for before, one in zip(counts[paths[path_id]], added, strict=True)
                ]
        return [SuggestionSums(*named, *count) for named, count in sorted(counts.items())]


def _told(connection: Connection, organisation: Organisation) -> Mapping[str, set[str]]:
    query = select(_feedback.c.event_id, _feedback.c.kind).where(
        _feedback.c.organisation_id == organisation.id
    )
    told: dict[str, set[str]] = defaultdict(set)
    for event_id, kind in connection.execute(query):
        told[event_id].add(kind)
    return told


def _paths_told_of(
    connection: Connection, organisation: Organisation
) -> dict[int, tuple[str, str, str]]:
    """Department, model and currency of the paths whose department and model have feedback."""
    c = _paths.c
    query = (
        select(c.id, _departments.c.name, c.model, c.currency)
        .join(_departments, _departments.c.id == c.department_id)
        .where(c.organisation_id == organisation.id)
    )
    named = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(query)}
    query = (
        select(_events.c.path_id)
        .join(_feedback, _feedback.c.event_id == _events.c.id)
        .where(_feedback.c.organisation_id == organisation.id)
        .distinct()
    )
    wanted = {named[path_id] for path_id in connection.execute(query).scalars()}
    return {path_id: names for path_id, names in named.items() if names in wanted}


def _completions(
    connection: Connection, path_ids: list[int], start: datetime, end: datetime
) -> Iterator[tuple[str, int, int]]:
    """Id, path and amount of the completions of these paths, a segment of events at a time."""
    c = _events.c
    query = (
        select(c.id, c.path_id, c.amount, c.segment_id, c.place)
        .where(c.path_id.in_(path_ids), c.ended_at >= start, c.ended_at < end)
        .order_by(c.segment_id)
    )
    segment_id, bodies = None, list[bytes]()
    for row in connection.execute(query).all():
        place: int = row.place
        if row.segment_id != segment_id:
            segment_id = row.segment_id
            packed = select(_segments.c.body).where(_segments.c.id == segment_id)
            bodies = unpack_bodies(connection.execute(packed).scalar_one())
        if _decoder.decode(bodies[place]).data.endpoint == ENDPOINT:
            yield row.id, row.path_id, int(row.amount)
