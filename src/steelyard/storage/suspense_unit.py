"""Suspended events and decisions on them, in a unit of work."""

from typing import Any, Final

from sqlalchemy import Row, insert, select

from steelyard.billing.suspense import Decision, SuspendedEvent
from steelyard.ledger.hold import read_budget_draws, read_draws
from steelyard.metering.event_segment import unpack_bodies
from steelyard.metering.usage_event import decode_event
from steelyard.money import Currency, Money
from steelyard.storage import schema
from steelyard.storage.fund_unit import SqlFundUnit
from steelyard.storage.seal import sealed

_events, _paths, _segments = schema.usage_events, schema.usage_paths, schema.event_segments
_decisions = schema.suspense_decisions
_SUSPENDED: Final = (
    select(
        _events,
        _paths,
        _segments.c.body,
        _decisions.c.command_id,
        _decisions.c.amount.label("decided_amount"),
        _decisions.c.decided_at,
        _decisions.c.actor,
        _decisions.c.reason,
    )
    .join(_paths, _paths.c.id == _events.c.path_id)
    .join(_segments, _segments.c.id == _events.c.segment_id)
    .outerjoin(_decisions, _decisions.c.event_id == _events.c.id)
    .where(_events.c.outcome == "suspended")
)


class SqlSuspenseUnit(SqlFundUnit):
    """Implements SuspenseUnit."""

    def find_suspended(self, event_id: str) -> SuspendedEvent | None:
        query = _SUSPENDED.where(_events.c.id == event_id)
        row = self.connection.execute(query).one_or_none()
        return None if row is None else _suspended(row)

    def list_suspended(self, *, with_decided: bool, limit: int) -> list[SuspendedEvent]:
        query = _SUSPENDED.order_by(_events.c.billed_at, _events.c.id).limit(limit)
        if not with_decided:
            query = query.where(_decisions.c.event_id.is_(None))
        return [_suspended(row) for row in self.connection.execute(query)]

    def insert_decision(self, event_id: str, decision: Decision) -> None:
        row = {
            "event_id": event_id,
            "command_id": decision.command_id,
            "amount": decision.picos,
            "decided_at": decision.decided_at,
            "actor": decision.actor,
            "reason": decision.reason,
        }
        self.connection.execute(insert(_decisions), sealed(_decisions, row))


def _suspended(row: Row[Any]) -> SuspendedEvent:
    decision = None
    if row.command_id is not None:
        decision = Decision(
            row.command_id, row.decided_amount, row.decided_at, row.actor, row.reason
        )
    bodies, place = unpack_bodies(bytes(row.body)), int(row.place)
    return SuspendedEvent(
        id=row.id,
        organisation_id=row.organisation_id,
        department_id=row.department_id,
        payer_id=row.payer_id,
        held=Money(row.amount, Currency(row.currency)),
        draws=read_draws(row.draws),
        budget_draws=read_budget_draws(row.budget_draws),
        billed_at=row.billed_at,
        record=decode_event(bodies[place]).data,
        decision=decision,
    )
