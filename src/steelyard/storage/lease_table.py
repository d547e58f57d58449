"""The table of leases."""

from sqlalchemy import CheckConstraint, Column, String, Table, Text

from steelyard.storage.column_types import Moment, Picos
from steelyard.storage.tenant_tables import id_column, metadata

# What gateways may hold out of without asking. A lease's row goes when nothing is left to settle.
leases = Table(
    "leases",
    metadata,
    id_column(),
    Column("organisation_id", String(64), nullable=False),
    Column("payer_id", String(64), nullable=False, index=True),
    Column("key_id", String(64), nullable=False),
    Column("source", String(128), nullable=False, index=True),
    Column("currency", String(3), nullable=False),
    Column("amount", Picos, nullable=False),
    *(Column(name, Text, nullable=False) for name in ("draws", "budget_draws")),
    *(Column(name, Moment, nullable=False) for name in ("granted_at", "expires_at")),
    Column("status", String(16), nullable=False),
    Column("last_event_id", String(64)),
    Column("run_id", String(64)),
    CheckConstraint("amount >= 0", name="not_negative"),
    CheckConstraint("expires_at > granted_at", name="expires_at"),
    CheckConstraint("status IN ('open', 'recalled', 'drained', 'ended')", name="status"),
    CheckConstraint("(status = 'ended') = (last_event_id IS NOT NULL)", name="last_event_id"),
    sqlite_with_rowid=False,
)
