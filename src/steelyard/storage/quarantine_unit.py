"""Quarantined records and their dismissals, in a unit of work."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, insert, select

from steelyard.billing.quarantine import Dismissal, QuarantinedRecord
from steelyard.storage import schema
from steelyard.storage.fund_unit import SqlFundUnit

_records, _dismissals = schema.quarantined_events, schema.quarantine_dismissals
_WITH_DISMISSALS: Final = select(
    _records,
    _dismissals.c.dismissed_at,
    _dismissals.c.actor,
    _dismissals.c.reason.label("dismissed_for"),
    _dismissals.c.released_hold_id,
).outerjoin(_dismissals, _dismissals.c.content_hash == _records.c.content_hash)


class SqlQuarantineUnit(SqlFundUnit):
    """Implements QuarantineUnit."""

    def find_quarantined(self, content_hash: str) -> Sequence[QuarantinedRecord]:
        begins_so = _records.c.content_hash.startswith(content_hash, autoescape=True)
        rows = self.connection.execute(_WITH_DISMISSALS.where(begins_so).limit(2))
        return [_record(row) for row in rows]

    def list_quarantined(self, *, with_dismissed: bool, limit: int) -> list[QuarantinedRecord]:
        query = _WITH_DISMISSALS.order_by(_records.c.quarantined_at, _records.c.content_hash)
        if not with_dismissed:
            query = query.where(_dismissals.c.content_hash.is_(None))
        return [_record(row) for row in self.connection.execute(query.limit(limit))]

    def insert_dismissal(self, content_hash: str, dismissal: Dismissal) -> None:
        self.connection.execute(
            insert(_dismissals),
            {
                "content_hash": content_hash,
                "dismissed_at": dismissal.dismissed_at,
                "actor": dismissal.actor,
                "reason": dismissal.reason,
                "released_hold_id": dismissal.released_hold_id,
            },
        )


def _record(row: Row[Any]) -> QuarantinedRecord:
    dismissal = None
    if row.dismissed_at is not None:
        dismissal = Dismissal(row.dismissed_at, row.actor, row.dismissed_for, row.released_hold_id)
    return QuarantinedRecord(
        content_hash=row.content_hash,
        log_id=row.log_id,
        position=row.position,
        reason=row.reason,
        quarantined_at=row.quarantined_at,
        body=row.body,
        dismissal=dismissal,
    )
