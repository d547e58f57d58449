"""The books: tenants, budgets, prices, ledger, holds, events, invoices and positions."""

import sqlalchemy as sa
from alembic import op

from steelyard.storage.append_only import append_only_statements
from steelyard.storage.column_types import Moment, Picos
from steelyard.storage.sealing import sealing_statements

revision = "0002"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "price_versions",
    "ledger_transactions",
    "ledger_postings",
    "grants",
    "ended_holds",
    "event_segments",
    "usage_events",
    "event_shares",
    "adjustments",
    "suspense_decisions",
    "re_rated_events",
    "invoices",
    "chargebacks",
    "quarantined_events",
    "quarantine_dismissals",
    "recounts",
)


def upgrade() -> None:

    op.create_table(
        "ended_holds",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ended_at", Moment(length=27), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('declined', 'released')", name=op.f("ck_ended_holds_outcome")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ended_holds")),
    )
    op.create_table(
        "event_segments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("first_position", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", Moment(length=27), nullable=False),
        sa.Column("event_count", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_segments")),
        sa.UniqueConstraint(
            "log_id", "first_position", name=op.f("uq_event_segments_log_id_first_position")
        ),
    )
    op.create_table(
        "event_sources",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_sources")),
        sa.UniqueConstraint("source", name=op.f("uq_event_sources_source")),
    )
    op.create_table(
        "funding_hours",
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("billed_hour", sa.String(length=13), nullable=False),
        sa.Column("grant_id", sa.String(length=64), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.PrimaryKeyConstraint(
            "organisation_id",
            "payer_id",
            "billed_hour",
            "grant_id",
            "currency",
            name=op.f("pk_funding_hours"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "grants",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("granted_at", Moment(length=27), nullable=False),
        sa.Column("expires_at", Moment(length=27), nullable=True),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.CheckConstraint("kind IN ('paid', 'promotional')", name=op.f("ck_grants_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    op.create_index("ix_grants_payer_id", "grants", ["payer_id"], unique=False)
    op.create_table(
        "ledger_accounts",
        sa.Column("id", sa.String(length=192), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("balance", Picos(), nullable=False),
        sa.Column("floor", Picos(), nullable=True),
        sa.CheckConstraint(
            "floor IS NULL OR balance >= floor", name=op.f("ck_ledger_accounts_floor")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_accounts")),
    )
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("template", sa.String(length=32), nullable=False),
        sa.Column("reference", sa.String(length=128), nullable=False),
        sa.Column("booked_at", Moment(length=27), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_transactions")),
    )
    op.create_index(
        "ix_ledger_transactions_reference", "ledger_transactions", ["reference"], unique=False
    )
    op.create_index(
        "ix_ledger_transactions_template_booked_at",
        "ledger_transactions",
        ["template", "booked_at"],
        unique=False,
    )
    op.create_table(
        "log_positions",
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_id", name=op.f("pk_log_positions")),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("draws", sa.Text(), nullable=False),
        sa.Column("budget_draws", sa.Text(), nullable=False),
        sa.Column("granted_at", Moment(length=27), nullable=False),
        sa.Column("expires_at", Moment(length=27), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("last_event_id", sa.String(length=64), nullable=True),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_leases_not_negative")),
        sa.CheckConstraint("expires_at > granted_at", name=op.f("ck_leases_expires_at")),
        sa.CheckConstraint(
            "status IN ('open', 'recalled', 'drained', 'ended')", name=op.f("ck_leases_status")
        ),
        sa.CheckConstraint(
            "(status = 'ended') = (last_event_id IS NOT NULL)",
            name=op.f("ck_leases_last_event_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_leases_source", "leases", ["source"], unique=False)
    op.create_index("ix_leases_payer_id", "leases", ["payer_id"], unique=False)
    op.create_table(
        "open_holds",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("draws", sa.Text(), nullable=False),
        sa.Column("budget_draws", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.Column("placed_at", Moment(length=27), nullable=False),
        sa.Column("opened", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.CheckConstraint("status IN ('placed', 'unresolved')", name=op.f("ck_open_holds_status")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_open_holds_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_open_holds")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("tax_ppm", sa.Integer(), nullable=False),
        sa.Column("plan", sa.String(length=63), nullable=True),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.CheckConstraint("tax_ppm BETWEEN 0 AND 1000000", name=op.f("ck_organisations_tax_ppm")),
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
        "re_rating_runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.Column("proposed_at", Moment(length=27), nullable=False),
        sa.Column("proposed_by", sa.String(length=128), nullable=False),
        sa.Column("approved_at", Moment(length=27), nullable=True),
        sa.Column("approved_by", sa.String(length=128), nullable=True),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_re_rating_runs")),
    )
    op.create_table(
        "request_hours",
        sa.Column("path_id", sa.Integer(), nullable=False),
        sa.Column("billed_hour", sa.String(length=13), nullable=False),
        sa.Column("request_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("path_id", "billed_hour", name=op.f("pk_request_hours")),
        sqlite_with_rowid=False,
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
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("path_id", sa.Integer(), nullable=False),
        sa.Column("segment_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("ended_at", Moment(length=27), nullable=False),
        sa.Column("billed_at", Moment(length=27), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("charges", sa.Text(), nullable=False),
        sa.Column("draws", sa.Text(), nullable=False),
        sa.Column("budget_draws", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('settled', 'suspended')", name=op.f("ck_usage_events_outcome")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sa.UniqueConstraint(
            "source_id", "sequence", name=op.f("uq_usage_events_source_id_sequence")
        ),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_usage_events_path_id_billed_at", "usage_events", ["path_id", "billed_at"], unique=False
    )
    op.create_index(
        "ix_usage_events_suspended",
        "usage_events",
        ["path_id", "billed_at"],
        unique=False,
        sqlite_where=sa.text("outcome = 'suspended'"),
        postgresql_where=sa.text("outcome = 'suspended'"),
    )
    op.create_table(
        "event_shares",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_event_shares_weight")),
        sa.ForeignKeyConstraint(
            ["event_id"], ["usage_events.id"], name=op.f("fk_event_shares_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", "department_id", name=op.f("pk_event_shares")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_hours",
        sa.Column("path_id", sa.Integer(), nullable=False),
        sa.Column("billed_hour", sa.String(length=13), nullable=False),
        sa.Column("used_hour", sa.String(length=13), nullable=False),
        sa.Column("meter", sa.String(length=64), nullable=False),
        sa.Column("picos_per_unit", Picos(), nullable=False),
        sa.Column("count", Picos(), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.PrimaryKeyConstraint(
            "path_id",
            "billed_hour",
            "used_hour",
            "meter",
            "picos_per_unit",
            name=op.f("pk_usage_hours"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_paths",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("upstream", sa.String(length=255), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("price_version", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_paths")),
        sa.UniqueConstraint(
            "organisation_id",
            "department_id",
            "project_id",
            "key_id",
            "payer_id",
            "model",
            "upstream",
            "currency",
            "price_version",
            name=op.f(
                "uq_usage_paths_organisation_id_department_id_project_id_key_id_payer_id_model_upstream_currency_price_version"
            ),
        ),
    )
    op.create_table(
        "adjustments",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("payer_id", sa.String(length=64), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("draws", sa.Text(), nullable=False),
        sa.Column("reference", sa.String(length=128), nullable=False),
        sa.Column("billed_at", Moment(length=27), nullable=False),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.CheckConstraint(
            "kind IN ('refund', 'correction', 're_rating', 'suspense')",
            name=op.f("ck_adjustments_kind"),
        ),
        sa.ForeignKeyConstraint(["id"], ["ledger_transactions.id"], name=op.f("fk_adjustments_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjustments")),
    )
    op.create_index(
        "ix_adjustments_organisation_id_billed_at",
        "adjustments",
        ["organisation_id", "billed_at"],
        unique=False,
    )
    op.create_index("ix_adjustments_reference", "adjustments", ["reference"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("scope_id", sa.String(length=64), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("is_hard", sa.Integer(), nullable=False),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.Column("ended_at", Moment(length=27), nullable=True),
        sa.CheckConstraint("period IN ('day', 'month', 'total')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint(
            "scope IN ('organisation', 'department', 'project', 'key')",
            name=op.f("ck_budgets_scope"),
        ),
        sa.CheckConstraint("unit IN ('money', 'tokens')", name=op.f("ck_budgets_unit")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_budgets_amount")),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name=op.f("fk_budgets_organisation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )
    op.create_index("ix_budgets_scope_id", "budgets", ["scope_id"], unique=False)
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
        "invoices",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.String(length=96), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("period_start", Moment(length=27), nullable=False),
        sa.Column("period_end", Moment(length=27), nullable=False),
        sa.Column("issued_at", Moment(length=27), nullable=False),
        sa.Column("corrects", sa.String(length=64), nullable=True),
        sa.Column("command_id", sa.String(length=64), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('invoice', 'credit_note')", name=op.f("ck_invoices_kind")),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name=op.f("fk_invoices_organisation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint("command_id", name=op.f("uq_invoices_command_id")),
        sa.UniqueConstraint("number", name=op.f("uq_invoices_number")),
    )
    op.create_index(
        "ix_invoices_organisation_id_period_end",
        "invoices",
        ["organisation_id", "period_end"],
        unique=False,
    )
    op.create_table(
        "chargebacks",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("invoice", sa.String(length=96), nullable=False),
        sa.Column("canonical", sa.Text(), nullable=False),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["ledger_transactions.id"], name=op.f("fk_chargebacks_id")),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name=op.f("fk_chargebacks_organisation_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chargebacks")),
        sa.UniqueConstraint("invoice", name=op.f("uq_chargebacks_invoice")),
    )
    op.create_table(
        "ledger_postings",
        sa.Column("transaction_id", sa.String(length=128), nullable=False),
        sa.Column("account_id", sa.String(length=192), nullable=False),
        sa.Column("picos", Picos(), nullable=False),
        sa.CheckConstraint("picos <> 0", name=op.f("ck_ledger_postings_not_zero")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["ledger_accounts.id"], name=op.f("fk_ledger_postings_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["transaction_id"],
            ["ledger_transactions.id"],
            name=op.f("fk_ledger_postings_transaction_id"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("transaction_id", "account_id", name=op.f("pk_ledger_postings")),
    )
    op.create_index(
        "ix_ledger_postings_account_id", "ledger_postings", ["account_id"], unique=False
    )
    op.create_table(
        "quarantine_dismissals",
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("dismissed_at", Moment(length=27), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("released_hold_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["content_hash"],
            ["quarantined_events.content_hash"],
            name=op.f("fk_quarantine_dismissals_content_hash"),
        ),
        sa.PrimaryKeyConstraint("content_hash", name=op.f("pk_quarantine_dismissals")),
    )
    op.create_table(
        "re_rated_events",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("amount_before", Picos(), nullable=False),
        sa.Column("amount_after", Picos(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["re_rating_runs.id"], name=op.f("fk_re_rated_events_run_id")
        ),
        sa.PrimaryKeyConstraint("event_id", "run_id", name=op.f("pk_re_rated_events")),
    )
    op.create_table(
        "suspense_decisions",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("command_id", sa.String(length=128), nullable=False),
        sa.Column("amount", Picos(), nullable=False),
        sa.Column("decided_at", Moment(length=27), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seal", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["usage_events.id"], name=op.f("fk_suspense_decisions_event_id")
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_suspense_decisions")),
        sa.UniqueConstraint("command_id", name=op.f("uq_suspense_decisions_command_id")),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("window_name", sa.String(length=16), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("raised_at", Moment(length=27), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_alerts_budget_id")
        ),
        sa.PrimaryKeyConstraint(
            "budget_id", "window_name", "percent", name=op.f("pk_budget_alerts")
        ),
    )
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("window_name", sa.String(length=16), nullable=False),
        sa.Column("reserved", Picos(), nullable=False),
        sa.Column("used", Picos(), nullable=False),
        sa.CheckConstraint("reserved >= 0", name=op.f("ck_budget_windows_reserved")),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.id"], name=op.f("fk_budget_windows_budget_id")
        ),
        sa.PrimaryKeyConstraint("budget_id", "window_name", name=op.f("pk_budget_windows")),
    )
    op.create_table(
        "chargeback_weights",
        sa.Column("shared_department_id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("ck_chargeback_weights_weight")),
        sa.ForeignKeyConstraint(
            ["department_id"], ["departments.id"], name=op.f("fk_chargeback_weights_department_id")
        ),
        sa.ForeignKeyConstraint(
            ["shared_department_id"],
            ["departments.id"],
            name=op.f("fk_chargeback_weights_shared_department_id"),
        ),
        sa.PrimaryKeyConstraint(
            "shared_department_id", "department_id", name=op.f("pk_chargeback_weights")
        ),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.ForeignKeyConstraint(
            ["department_id"], ["departments.id"], name=op.f("fk_projects_department_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("department_id", "name", name=op.f("uq_projects_department_id_name")),
    )
    op.create_table(
        "virtual_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("department_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=32), nullable=False),
        sa.Column("disconnect_policy", sa.String(length=16), nullable=True),
        sa.Column("cache_ttl_s", sa.Integer(), nullable=True),
        sa.Column("created_at", Moment(length=27), nullable=False),
        sa.Column("revoked_at", Moment(length=27), nullable=True),
        sa.Column("expires_at", Moment(length=27), nullable=True),
        sa.ForeignKeyConstraint(
            ["department_id"], ["departments.id"], name=op.f("fk_virtual_keys_department_id")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_virtual_keys_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_virtual_keys")),
        sa.UniqueConstraint(
            "department_id", "name", name=op.f("uq_virtual_keys_department_id_name")
        ),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_virtual_keys_secret_hash")),
    )
    op.create_index("ix_virtual_keys_revoked_at", "virtual_keys", ["revoked_at"], unique=False)
    op.create_table(
        "replaced_secrets",
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("ends_at", Moment(length=27), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["virtual_keys.id"], name=op.f("fk_replaced_secrets_key_id")
        ),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_replaced_secrets")),
    )
    op.create_table(
        "limits",
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("scope_id", sa.String(length=256), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("tokens_per_minute", sa.Integer(), nullable=True),
        sa.Column("requests_at_once", sa.Integer(), nullable=True),
        sa.Column("input_tokens_max", sa.Integer(), nullable=True),
        sa.Column("output_tokens_max", sa.Integer(), nullable=True),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("ip_ranges", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "scope IN ('organisation', 'department', 'project', 'key', 'model')",
            name=op.f("ck_limits_scope"),
        ),
        sa.PrimaryKeyConstraint("scope", "scope_id", name=op.f("pk_limits")),
    )
    op.create_table(
        "recounts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("log_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("upstream", sa.String(length=128), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("event_count", sa.BigInteger(), nullable=False),
        sa.Column("reported_input", sa.BigInteger(), nullable=True),
        sa.Column("recounted_input", sa.BigInteger(), nullable=True),
        sa.Column("reported_output", sa.BigInteger(), nullable=True),
        sa.Column("recounted_output", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("pin_sha256", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("recounted_at", Moment(length=27), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('recounted', 'uncountable', 'dropped')", name=op.f("ck_recounts_outcome")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recounts")),
        sa.UniqueConstraint("log_id", "position", name=op.f("uq_recounts_log_id_position")),
    )

    dialect = op.get_bind().dialect.name
    for statement in append_only_statements(APPEND_ONLY, dialect=dialect):
        op.get_bind().exec_driver_sql(statement)
    for statement in sealing_statements(dialect=dialect):
        op.get_bind().exec_driver_sql(statement)
