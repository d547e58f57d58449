"""The tables. Migrations bring a database to this shape; a test holds the two together."""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from steelyard.storage import lease_table, tenant_tables
from steelyard.storage.column_types import Moment, Picos
from steelyard.storage.tenant_tables import id_column

metadata = tenant_tables.metadata
organisations = tenant_tables.organisations
departments = tenant_tables.departments
projects = tenant_tables.projects
virtual_keys = tenant_tables.virtual_keys
replaced_secrets = tenant_tables.replaced_secrets
limits = tenant_tables.limits
chargeback_weights = tenant_tables.chargeback_weights
leases = lease_table.leases

revisions = Table(
    "revisions",
    metadata,
    Column("topic", String(32), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

budgets = Table(
    "budgets",
    metadata,
    id_column(),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("scope_id", String(64), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("period", String(16), nullable=False),
    Column("amount", Picos, nullable=False),
    Column("is_hard", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("ended_at", Moment),
    CheckConstraint("scope IN ('organisation', 'department', 'project', 'key')", name="scope"),
    CheckConstraint("unit IN ('money', 'tokens')", name="unit"),
    CheckConstraint("period IN ('day', 'month', 'total')", name="period"),
    CheckConstraint("amount >= 0", name="amount"),
    Index("ix_budgets_scope_id", "scope_id"),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("budget_id", String(64), ForeignKey("budgets.id"), primary_key=True),
    Column("window_name", String(16), primary_key=True),
    Column("reserved", Picos, nullable=False),
    Column("used", Picos, nullable=False),
    CheckConstraint("reserved >= 0", name="reserved"),
)

budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("budget_id", String(64), ForeignKey("budgets.id"), primary_key=True),
    Column("window_name", String(16), primary_key=True),
    Column("percent", Integer, primary_key=True),
    Column("raised_at", Moment, nullable=False),
)

price_versions = Table(
    "price_versions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("publication", Integer, nullable=False, unique=True),
    Column("published_at", Moment, nullable=False),
    Column("canonical", Text, nullable=False),
)

# The floor of an account is the least that its balance may be; null where it may be anything.
ledger_accounts = Table(
    "ledger_accounts",
    metadata,
    Column("id", String(192), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("balance", Picos, nullable=False),
    Column("floor", Picos),
    CheckConstraint("floor IS NULL OR balance >= floor", name="floor"),
)

# Postings are written before their transaction, which seals them: a trigger refuses a transaction
# whose postings do not sum to zero, and postings that come after it.
ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("template", String(32), nullable=False),
    Column("reference", String(128), nullable=False),
    Column("booked_at", Moment, nullable=False),
    Column("actor", String(128)),
    Column("reason", Text),
    Column("seal", String(64), nullable=False),
    Index("ix_ledger_transactions_reference", "reference"),
    Index("ix_ledger_transactions_template_booked_at", "template", "booked_at"),
)

ledger_postings = Table(
    "ledger_postings",
    metadata,
    Column(
        "transaction_id",
        String(128),
        ForeignKey("ledger_transactions.id", deferrable=True, initially="DEFERRED"),
        primary_key=True,
    ),
    Column("account_id", String(192), ForeignKey("ledger_accounts.id"), primary_key=True),
    Column("picos", Picos, nullable=False),
    CheckConstraint("picos <> 0", name="not_zero"),
    Index("ix_ledger_postings_account_id", "account_id"),
)

grants = Table(
    "grants",
    metadata,
    id_column(),
    Column("payer_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("granted_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("seal", String(64), nullable=False),
    CheckConstraint("kind IN ('paid', 'promotional')", name="kind"),
    Index("ix_grants_payer_id", "payer_id"),
)

# A hold's row goes when its event is booked: the event then tells how it ended.
open_holds = Table(
    "open_holds",
    metadata,
    id_column(),
    Column("payer_id", String(64), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("amount", Picos, nullable=False),
    Column("draws", Text, nullable=False),
    Column("budget_draws", Text, nullable=False),
    Column("source", String(128), nullable=False),
    Column("placed_at", Moment, nullable=False),
    Column("opened", Text, nullable=False),
    Column("status", String(16), nullable=False),
    CheckConstraint("amount >= 0", name="not_negative"),
    CheckConstraint("status IN ('placed', 'unresolved')", name="status"),
    sqlite_with_rowid=False,
)

# Ends of holds that no event tells of: declined, so that a declined id stays declined, or released.
ended_holds = Table(
    "ended_holds",
    metadata,
    id_column(),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("ended_at", Moment, nullable=False),
    CheckConstraint("outcome IN ('declined', 'released')", name="outcome"),
)

event_sources = Table(
    "event_sources",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source", String(128), nullable=False, unique=True),
)

# Who used which model at which price: everything that many events have in common.
usage_paths = Table(
    "usage_paths",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("organisation_id", String(64), nullable=False),
    Column("department_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("payer_id", String(64), nullable=False),
    Column("model", String(255), nullable=False),
    Column("upstream", String(255), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("price_version", String(64), nullable=False),
    UniqueConstraint(
        "organisation_id",
        "department_id",
        "project_id",
        "key_id",
        "payer_id",
        "model",
        "upstream",
        "currency",
        "price_version",
    ),
)

# The bytes of a batch of events, as they were delivered: compressed, one after the other.
event_segments = Table(
    "event_segments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("log_id", String(64), nullable=False),
    Column("first_position", BigInteger, nullable=False),
    Column("settled_at", Moment, nullable=False),
    Column("event_count", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("log_id", "first_position"),
)

usage_events = Table(
    "usage_events",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("source_id", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("path_id", Integer, nullable=False),
    Column("segment_id", Integer, nullable=False),
    Column("place", Integer, nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("billed_at", Moment, nullable=False),
    Column("amount", Picos, nullable=False),
    Column("charges", Text, nullable=False),
    Column("draws", Text, nullable=False),
    Column("budget_draws", Text, nullable=False),
    Column("outcome", String(16), nullable=False),
    UniqueConstraint("source_id", "sequence"),
    CheckConstraint("outcome IN ('settled', 'suspended')", name="outcome"),
    Index("ix_usage_events_path_id_billed_at", "path_id", "billed_at"),
    Index(
        "ix_usage_events_suspended",
        "path_id",
        "billed_at",
        sqlite_where=text("outcome = 'suspended'"),
        postgresql_where=text("outcome = 'suspended'"),
    ),
    sqlite_with_rowid=False,
)

# Who bears the events that are split among departments: together what each costs.
event_shares = Table(
    "event_shares",
    metadata,
    Column("event_id", String(64), ForeignKey("usage_events.id"), primary_key=True),
    Column("department_id", String(64), primary_key=True),
    Column("weight", BigInteger, nullable=False),
    Column("picos", Picos, nullable=False),
    CheckConstraint("weight > 0", name="weight"),
    sqlite_with_rowid=False,
)

# What the settled events of an hour add up to, per path, meter and price: kept by the worker in the
# same transaction as the events, proved against them by `verify`.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("path_id", Integer, primary_key=True),
    Column("billed_hour", String(13), primary_key=True),
    Column("used_hour", String(13), primary_key=True),
    Column("meter", String(64), primary_key=True),
    Column("picos_per_unit", Picos, primary_key=True),
    Column("count", Picos, nullable=False),
    Column("picos", Picos, nullable=False),
    sqlite_with_rowid=False,
)

request_hours = Table(
    "request_hours",
    metadata,
    Column("path_id", Integer, primary_key=True),
    Column("billed_hour", String(13), primary_key=True),
    Column("request_count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Which grants the settled events of an hour were paid from; `grant_id` may be the credit line.
funding_hours = Table(
    "funding_hours",
    metadata,
    Column("organisation_id", String(64), primary_key=True),
    Column("payer_id", String(64), primary_key=True),
    Column("billed_hour", String(13), primary_key=True),
    Column("grant_id", String(64), primary_key=True),
    Column("currency", String(3), primary_key=True),
    Column("picos", Picos, nullable=False),
    sqlite_with_rowid=False,
)

# Amounts in a tenant's favour (positive) or against it, by command: each is one transaction.
adjustments = Table(
    "adjustments",
    metadata,
    Column("id", String(128), ForeignKey("ledger_transactions.id"), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("organisation_id", String(64), nullable=False),
    Column("department_id", String(64), nullable=False),
    Column("payer_id", String(64), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("amount", Picos, nullable=False),
    Column("draws", Text, nullable=False),
    Column("reference", String(128), nullable=False),
    Column("billed_at", Moment, nullable=False),
    Column("seal", String(64), nullable=False),
    CheckConstraint("kind IN ('refund', 'correction', 're_rating', 'suspense')", name="kind"),
    Index("ix_adjustments_organisation_id_billed_at", "organisation_id", "billed_at"),
    Index("ix_adjustments_reference", "reference"),
)

# A decision on an event that two computations disagreed on: how it ended.
suspense_decisions = Table(
    "suspense_decisions",
    metadata,
    Column("event_id", String(64), ForeignKey("usage_events.id"), primary_key=True),
    Column("command_id", String(128), nullable=False, unique=True),
    Column("amount", Picos, nullable=False),
    Column("decided_at", Moment, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("seal", String(64), nullable=False),
)

re_rating_runs = Table(
    "re_rating_runs",
    metadata,
    id_column(),
    Column("canonical", Text, nullable=False),
    Column("proposed_at", Moment, nullable=False),
    Column("proposed_by", String(128), nullable=False),
    Column("approved_at", Moment),
    Column("approved_by", String(128)),
    Column("seal", String(64), nullable=False),
)

re_rated_events = Table(
    "re_rated_events",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column("run_id", String(64), ForeignKey("re_rating_runs.id"), primary_key=True),
    Column("amount_before", Picos, nullable=False),
    Column("amount_after", Picos, nullable=False),
)

# The canonical JSON is the invoice; its hash is its id. Credit notes are invoices of their own.
invoices = Table(
    "invoices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("number", String(96), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("period_start", Moment, nullable=False),
    Column("period_end", Moment, nullable=False),
    Column("issued_at", Moment, nullable=False),
    Column("corrects", String(64)),
    Column("command_id", String(64), nullable=False, unique=True),
    Column("canonical", Text, nullable=False),
    CheckConstraint("kind IN ('invoice', 'credit_note')", name="kind"),
    Index("ix_invoices_organisation_id_period_end", "organisation_id", "period_end"),
)

# What was charged back for the period of an invoice, as a document; its transaction has its id.
chargebacks = Table(
    "chargebacks",
    metadata,
    Column("id", String(128), ForeignKey("ledger_transactions.id"), primary_key=True),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("invoice", String(96), nullable=False, unique=True),
    Column("canonical", Text, nullable=False),
    Column("seal", String(64), nullable=False),
)

quarantined_events = Table(
    "quarantined_events",
    metadata,
    Column("content_hash", String(64), primary_key=True),
    Column("log_id", String(64), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("quarantined_at", Moment, nullable=False),
    Column("body", Text, nullable=False),
)

# Somebody has looked at a record; its hold may have been released with that.
quarantine_dismissals = Table(
    "quarantine_dismissals",
    metadata,
    Column(
        "content_hash",
        String(64),
        ForeignKey("quarantined_events.content_hash"),
        primary_key=True,
    ),
    Column("dismissed_at", Moment, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("released_hold_id", String(64)),
)

log_positions = Table(
    "log_positions",
    metadata,
    Column("log_id", String(64), primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# Rows of these tables are written once: triggers refuse every later change.
APPEND_ONLY: Sequence[Table] = (
    price_versions,
    ledger_transactions,
    ledger_postings,
    grants,
    ended_holds,
    event_segments,
    usage_events,
    event_shares,
    adjustments,
    suspense_decisions,
    re_rated_events,
    invoices,
    chargebacks,
    quarantined_events,
    quarantine_dismissals,
)

recounts = Table(
    "recounts",
    metadata,
    id_column(),
    Column("log_id", String(64), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("upstream", String(128), nullable=False),
    Column("model", String(256), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("event_count", BigInteger, nullable=False),
    Column("reported_input", BigInteger),
    Column("recounted_input", BigInteger),
    Column("reported_output", BigInteger),
    Column("recounted_output", BigInteger),
    Column("source", String(16), nullable=False),
    Column("pin_sha256", String(64)),
    Column("reason", String(64)),
    Column("recounted_at", Moment, nullable=False),
    UniqueConstraint("log_id", "position"),
    CheckConstraint("outcome IN ('recounted', 'uncountable', 'dropped')", name="outcome"),
)

# What editors tell of suggestions; the first telling of a kind counts.
suggestion_feedback = Table(
    "suggestion_feedback",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("organisation_id", String(64), nullable=False),
    Column("told_at", Moment, nullable=False),
    CheckConstraint("kind IN ('shown', 'accepted')", name="kind"),
    Index("ix_suggestion_feedback_organisation_id", "organisation_id"),
)
