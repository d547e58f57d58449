"""Leases, in a unit of work. Their rows are locked after those of open holds and before accounts."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from steelyard.ledger.hold import (
    read_budget_draws,
    read_draws,
    write_budget_draws,
    write_draws,
)
from steelyard.ledger.lease import Lease
from steelyard.money import Currency, Money
from steelyard.storage import schema
from steelyard.storage.budget_unit import SqlBudgetUnit
from steelyard.storage.prepared import PreparedStatement
from steelyard.storage.set_statement import SetStatement
from steelyard.timestamp import read_timestamp, write_timestamp

_leases = schema.leases
SELECT_LEASES: Final = """SELECT id, organisation_id, payer_id, key_id, source, currency, amount,
    granted_at, expires_at, draws, budget_draws, status, last_event_id, run_id FROM leases"""
_IN_ORDER: Final = 'ORDER BY id COLLATE "C" FOR UPDATE'
_LOCK = SetStatement(f"{SELECT_LEASES} WHERE id IN :ids", locking=_IN_ORDER)
_INSERT = PreparedStatement(insert(_leases))
_KEEP = PreparedStatement(
    update(_leases)
    .where(_leases.c.id == bindparam("lease"))
    .values(
        amount=bindparam("picos"),
        draws=bindparam("drawn"),
        budget_draws=bindparam("budgets_drawn"),
        status=bindparam("stands"),
        last_event_id=bindparam("last_event"),
    )
)
_REMOVE = PreparedStatement(delete(_leases).where(_leases.c.id == bindparam("lease")))
# Only the state changes, so that a recall waits for nobody but the lease itself.
_RECALL = SetStatement(
    """UPDATE leases SET status = 'recalled' WHERE status = 'open' AND run_id IS NULL
    AND (payer_id IN :ids OR organisation_id IN :ids)""",
    on_postgres="""UPDATE leases SET status = 'recalled' WHERE id IN (
        SELECT id FROM leases WHERE status = 'open' AND run_id IS NULL
        AND (payer_id IN :ids OR organisation_id IN :ids)
        ORDER BY id COLLATE "C" FOR UPDATE
    )""",
)
_FREE = SetStatement(
    """SELECT id FROM leases WHERE status IN ('open', 'recalled') AND run_id IS NULL
    AND (payer_id IN :ids OR organisation_id IN :ids)"""
)
_RECALLED = SetStatement("SELECT id FROM leases WHERE status = 'recalled' AND source IN :ids")

_OF_SOURCES = SetStatement(
    f"{SELECT_LEASES} WHERE substr(source, 1, length(CAST(:prefix AS TEXT))) = :prefix ORDER BY id"
)
_ENDING_WITH = SetStatement("SELECT id FROM leases WHERE last_event_id IN :ids")


class _Named(msgspec.Struct):
    id: str


class SqlLeaseUnit(SqlBudgetUnit):
    """Implements LeaseBooks."""

    def insert_lease(self, lease: Lease) -> None:
        row = {
            "id": lease.id,
            "organisation_id": lease.organisation_id,
            "payer_id": lease.payer_id,
            "key_id": lease.key_id,
            "source": lease.source,
            "currency": lease.amount.currency,
            "amount": lease.amount.picos,
            "draws": write_draws(lease.draws),
            "budget_draws": write_budget_draws(lease.budget_draws),
            "granted_at": write_timestamp(lease.granted_at),
            "expires_at": write_timestamp(lease.expires_at),
            "status": lease.status,
            "last_event_id": lease.last_event_id,
            "run_id": lease.run_id,
        }
        _INSERT.run_each(self.connection, [row])

    def lock_leases(self, lease_ids: Collection[str]) -> dict[str, Lease]:
        rows = _LOCK.rows_in(self.connection, lease_ids)
        return {row[0]: lease_of(row) for row in rows}

    def keep_leases(self, leases: Sequence[Lease]) -> None:
        rows = [
            {
                "lease": lease.id,
                "picos": lease.amount.picos,
                "drawn": write_draws(lease.draws),
                "budgets_drawn": write_budget_draws(lease.budget_draws),
                "stands": lease.status,
                "last_event": lease.last_event_id,
            }
            for lease in leases
        ]
        if rows:
            _KEEP.run_each(self.connection, rows)

    def remove_leases(self, lease_ids: Collection[str]) -> None:
        if lease_ids:
            _REMOVE.run_each(self.connection, [{"lease": name} for name in sorted(lease_ids)])

    def recall_leases(self, owner_id: str) -> None:
        _RECALL.run_in(self.connection, [owner_id])

    def leases_in_hand(self, owner_id: str) -> list[str]:
        return sorted(row[0] for row in _FREE.rows_in(self.connection, [owner_id]))

    def recalled_leases(self, *, source: str) -> list[str]:
        return sorted(row[0] for row in _RECALLED.rows_in(self.connection, [source]))

    def leases_of(self, *, source_prefix: str) -> list[Lease]:
        rows = _OF_SOURCES.rows(self.connection, {"prefix": source_prefix})
        return [lease_of(row) for row in rows]

    def leases_ending_with(self, event_id: str) -> list[str]:
        return sorted(row[0] for row in _ENDING_WITH.rows_in(self.connection, [event_id]))

    def events_dismissed(self, event_ids: Collection[str]) -> set[str]:
        records, dismissals = schema.quarantined_events, schema.quarantine_dismissals
        query = select(records.c.body).join(
            dismissals, dismissals.c.content_hash == records.c.content_hash
        )
        found: set[str] = set()
        for event_id in event_ids:
            rows = self.connection.execute(
                query.where(records.c.body.contains(event_id, autoescape=True))
            )
            if any(_id_in(row.body) == event_id for row in rows):
                found.add(event_id)
        return found


def _id_in(body: str) -> str | None:
    """What a record calls itself, which may be anything."""
    try:
        return msgspec.json.decode(body, type=_Named).id
    except msgspec.DecodeError:
        return None


def lease_of(row: Sequence[Any]) -> Lease:
    """The lease of a row of `SELECT_LEASES`, as the driver reads it."""
    lease_id, organisation_id, payer_id, key_id, source, currency, amount, *rest = row
    granted_at, expires_at, draws, budget_draws, status, last_event_id, run_id = rest
    return Lease(
        id=lease_id,
        organisation_id=organisation_id,
        payer_id=payer_id,
        key_id=key_id,
        source=source,
        amount=Money(int(amount), Currency(currency)),
        granted_at=read_timestamp(granted_at),
        expires_at=read_timestamp(expires_at),
        draws=tuple(read_draws(draws)),
        budget_draws=tuple(read_budget_draws(budget_draws)),
        status=status,
        last_event_id=last_event_id,
        run_id=run_id,
    )
