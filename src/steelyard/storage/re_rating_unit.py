"""Re-rating in a unit of work: the events of a scope, and the runs that priced them again."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import Row, exists, insert, select, update

from steelyard.billing.re_rating import ReRatedEvent, ReRatingRun, ReRatingScope, ScopedEvent
from steelyard.ledger.hold import read_draws
from steelyard.metering.event_segment import unpack_bodies
from steelyard.metering.usage_event import decode_event
from steelyard.storage import schema
from steelyard.storage.fund_unit import SqlFundUnit
from steelyard.storage.seal import sealed

_events, _paths, _segments = schema.usage_events, schema.usage_paths, schema.event_segments
_runs, _re_rated, _adjustments = schema.re_rating_runs, schema.re_rated_events, schema.adjustments


class SqlReRatingUnit(SqlFundUnit):
    """Implements ReRatingUnit."""

    def events_in_scope(self, scope: ReRatingScope) -> Iterator[ScopedEvent]:
        conditions = [
            _paths.c.organisation_id == scope.organisation_id,
            _events.c.outcome == "settled",
            _events.c.ended_at >= scope.start,
            _events.c.ended_at < scope.end,
            # Billed when it ended, or later: so the index helps.
            _events.c.billed_at >= scope.start,
        ]
        if scope.old_version is not None:
            conditions.append(_paths.c.price_version == scope.old_version)
        if scope.model is not None:
            conditions.append(_paths.c.model == scope.model)
        refunded = exists().where(
            _adjustments.c.reference == _events.c.id, _adjustments.c.kind == "refund"
        )
        query = (
            select(_events, _paths, refunded.label("is_refunded"))
            .join(_paths, _paths.c.id == _events.c.path_id)
            .where(*conditions)
            .order_by(_events.c.id)
        )
        amounts = self._amounts_now()
        segment, bodies = 0, list[bytes]()
        for row in self.connection.execute(query):
            if row.segment_id != segment:
                segment, bodies = row.segment_id, self._bodies(row.segment_id)
            place: int = row.place
            booked: int = row.amount
            yield ScopedEvent(
                id=row.id,
                department_id=row.department_id,
                payer_id=row.payer_id,
                amount=amounts.get(row.id, booked),
                draws=read_draws(row.draws),
                is_refunded=bool(row.is_refunded),
                record=decode_event(bodies[place]).data,
            )

    def insert_run(self, run: ReRatingRun) -> None:
        row = {
            "id": run.id,
            "canonical": run.canonical,
            "proposed_at": run.proposed_at,
            "proposed_by": run.proposed_by,
        }
        self.connection.execute(insert(_runs), sealed(_runs, row))

    def find_run(self, run_id: str) -> ReRatingRun | None:
        row = self.connection.execute(select(_runs).where(_runs.c.id == run_id)).one_or_none()
        return None if row is None else _run_of(row)

    def runs(self) -> list[ReRatingRun]:
        rows = self.connection.execute(select(_runs).order_by(_runs.c.proposed_at, _runs.c.id))
        return [_run_of(row) for row in rows]

    def approve_run(self, run_id: str, *, at: datetime, actor: str) -> None:
        approved = self.connection.execute(
            update(_runs)
            .where(_runs.c.id == run_id, _runs.c.approved_at.is_(None))
            .values(approved_at=at, approved_by=actor)
        )
        assert approved.rowcount == 1, "a run is approved once"

    def insert_re_rated(self, run_id: str, events: Sequence[ReRatedEvent]) -> None:
        self.connection.execute(
            insert(_re_rated),
            [
                {
                    "event_id": item.event.id,
                    "run_id": run_id,
                    "amount_before": item.event.amount,
                    "amount_after": item.after,
                }
                for item in events
            ],
        )

    def _amounts_now(self) -> dict[str, int]:
        """What events cost that were priced again: by the run that was approved last."""
        query = (
            select(_re_rated.c.event_id, _re_rated.c.amount_after)
            .join(_runs, _runs.c.id == _re_rated.c.run_id)
            .order_by(_runs.c.approved_at)
        )
        return {row.event_id: row.amount_after for row in self.connection.execute(query)}

    def _bodies(self, segment_id: int) -> list[bytes]:
        query = select(_segments.c.body).where(_segments.c.id == segment_id)
        body: bytes = self.connection.execute(query).scalar_one()
        return unpack_bodies(body)


def _run_of(row: Row[tuple[str, ...]]) -> ReRatingRun:
    return ReRatingRun(
        id=row.id,
        canonical=row.canonical,
        proposed_at=row.proposed_at,
        proposed_by=row.proposed_by,
        approved_at=row.approved_at,
        approved_by=row.approved_by,
    )
