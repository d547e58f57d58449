"""The first books: tenants, keys, prices, ledger, holds, events and positions."""

import sqlalchemy as sa
from alembic import op

from steelyard.storage.append_only import append_only_statements
from steelyard.storage.schema import Moment, Picos

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "price_versions",
    "ledger_transactions",
    "ledger_postings",
    "usage_events",
    "charge_lines",
    "quarantined_events",
)


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.Column("placed_at", Moment(length=27), nullable=False),
        sa.Column("opened", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.CheckConstraint(
            "status IN ('placed', 'settled', 'suspended')", name=op.f("ck_holds_status")
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_holds_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )
    op.create_index("ix_holds_status_source", "holds", ["status", "source"], unique=False)
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("balance", Picos(), nullable=False),
        sa.CheckConstraint(
            "kind NOT IN ('held', 'prepaid') OR balance >= 0",
            name=op.f("ck_ledger_accounts_never_negative"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
    )
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.String(length=96), nullable=False),
        sa.Column("template", sa.String(length=32), nullable=False),
        sa.Column("reference", sa.String(length=64), nullable=False),
        sa.Column("booked_at", Moment(length=27), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
    )
    op.create_index(
        "ix_ledger_transactions_reference", "ledger_transactions", ["reference"], unique=False
    )
    op.create_table(
        "log_positions",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_id", name=op.f("pk_log_positions")),
    )
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organisations")),
        sa.UniqueConstraint("name", name=op.f("uq_organisations_name")),
    )
    op.create_table(
        "price_versions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("publication", sa.Integer(), nullable=False),
        sa.Column("published_at", Moment(length=27), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_price_versions")),
        sa.UniqueConstraint("name", name=op.f("uq_price_versions_name")),
        sa.UniqueConstraint("publication", name=op.f("uq_price_versions_publication")),
    )
    op.create_table(
        "quarantined_events",
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("quarantined_at", Moment(length=27), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("content_hash", name=op.f("pk_quarantined_events")),
    )
    op.create_table(
        "revisions",
        sa.Column("topic", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", name=op.f("pk_revisions")),
    )
    op.create_table(
        "usage_events",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("ended_at", Moment(length=27), nullable=False),
        sa.Column("settled_at", Moment(length=27), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('settled', 'suspended')", name=op.f("ck_usage_events_outcome")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sa.UniqueConstraint("source", "sequence", name=op.f("uq_usage_events_source_sequence")),
    )
    op.create_index(
        "ix_usage_events_department_id_settled_at",
        "usage_events",
        ["department_id", "settled_at"],
        unique=False,
    )
    op.create_index("ix_usage_events_ended_at", "usage_events", ["ended_at"], unique=False)
    op.create_index(
        "ix_usage_events_organisation_id_settled_at",
        "usage_events",
        ["organisation_id", "settled_at"],
        unique=False,
    )
    op.create_table(
        "charge_lines",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("meter", sa.String(length=64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("picos_per_unit", Picos(), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["usage_events.id"], name=op.f("fk_charge_lines_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", "meter", name=op.f("pk_charge_lines")),
    )
    op.create_table(
        "departments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("pays_from", sa.String(length=16), nullable=False),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.CheckConstraint(
            "pays_from IN ('organisation', 'department')", name=op.f("ck_departments_pays_from")
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name=op.f("fk_departments_organisation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_departments")),
        sa.UniqueConstraint(
            "organisation_id", "name", name=op.f("uq_departments_organisation_id_name")
        ),
    )
    op.create_table(
        "ledger_postings",
        sa.Column("transaction_id", sa.String(length=96), nullable=False),
        sa.Column("account_id", sa.String(length=128), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.CheckConstraint("picos <> 0", name=op.f("ck_ledger_postings_not_zero")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["ledger_accounts.id"], name=op.f("fk_ledger_postings_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transactions.id"],
            name=op.f("fk_ledger_postings_transaction_id"),
        ),
        sa.PrimaryKeyConstraint("transaction_id", "account_id", name=op.f("pk_ledger_postings")),
    )
    op.create_index(
        "ix_ledger_postings_account_id", "ledger_postings", ["account_id"], unique=False
    )
    op.create_table(
        "virtual_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=32), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("input_tokens_max", sa.Integer(), nullable=True),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.Column("revoked_at", Moment(length=27), nullable=True),
        sa.ForeignKeyConstraint(
            ["department_id"], ["departments.id"], name=op.f("fk_virtual_keys_department_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_virtual_keys")),
        sa.UniqueConstraint(
            "department_id", "name", name=op.f("uq_virtual_keys_department_id_name")
        ),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_virtual_keys_secret_hash")),
    )
    dialect = op.get_bind().dialect.name
    for statement in append_only_statements(APPEND_ONLY, dialect=dialect):
        op.get_bind().exec_driver_sql(statement)
