"""What became of suggestions: which were shown, and which were accepted."""

import sqlalchemy as sa
from alembic import op

from steelyard.storage.append_only import append_only_statements
from steelyard.storage.column_types import Moment

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "suggestion_feedback",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("organisation_id", sa.String(length=64), nullable=False),
        sa.Column("told_at", Moment(length=27), nullable=False),
        sa.CheckConstraint(
            "kind IN ('shown', 'accepted')", name=op.f("ck_suggestion_feedback_kind")
        ),
        sa.PrimaryKeyConstraint("event_id", "kind", name=op.f("pk_suggestion_feedback")),
    )
    op.create_index(
        "ix_suggestion_feedback_organisation_id",
        "suggestion_feedback",
        ["organisation_id"],
        unique=False,
    )
    dialect = op.get_bind().dialect.name
    for statement in append_only_statements(("suggestion_feedback",), dialect=dialect):
        op.get_bind().exec_driver_sql(statement)
