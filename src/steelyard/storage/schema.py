"""The tables. Migrations bring a database to this shape; a test holds the two together."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from steelyard.ledger.chart import NEVER_NEGATIVE
from steelyard.ledger.store import BalanceTooLarge
from steelyard.timestamp import read_timestamp, write_timestamp

SQLITE_INTEGER_MAX = 2**63 - 1


class Picos(TypeDecorator[int]):
    """A whole number of picos: NUMERIC(38) on PostgreSQL, a 64-bit integer on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(Numeric(38, 0))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | Decimal | None:
        if value is None:
            return None
        assert type(value) is int, f"money must be whole, got {value!r}"
        if dialect.name != "sqlite":
            return Decimal(value)
        # SQLite turns a larger number into a float without a word.
        if abs(value) > SQLITE_INTEGER_MAX:
            raise BalanceTooLarge
        return value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        del dialect
        assert not isinstance(value, float), f"an amount came back as a float: {value!r}"
        return None if value is None else int(value)


class Moment(TypeDecorator[datetime]):
    """A UTC moment as RFC 3339 text: the same bytes in every database, and in order."""

    impl = String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else write_timestamp(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else read_timestamp(value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str = "id", *, primary_key: bool = True) -> Column[str]:
    return Column(name, String(64), primary_key=primary_key, nullable=False)


revisions = Table(
    "revisions",
    metadata,
    Column("topic", String(32), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

organisations = Table(
    "organisations",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("currency", String(3), nullable=False),
    Column("created_at", Moment, nullable=False),
)

departments = Table(
    "departments",
    metadata,
    _id(),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("pays_from", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("organisation_id", "name"),
    CheckConstraint("pays_from IN ('organisation', 'department')", name="pays_from"),
)

virtual_keys = Table(
    "virtual_keys",
    metadata,
    _id(),
    Column("department_id", String(64), ForeignKey("departments.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("requests_per_minute", Integer),
    Column("input_tokens_max", Integer),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    UniqueConstraint("department_id", "name"),
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

ledger_accounts = Table(
    "ledger_accounts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("balance", Picos, nullable=False),
    CheckConstraint(
        "kind NOT IN ({}) OR balance >= 0".format(
            ", ".join(f"'{kind}'" for kind in sorted(NEVER_NEGATIVE))
        ),
        name="never_negative",
    ),
)

ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("id", String(96), primary_key=True),
    Column("template", String(32), nullable=False),
    Column("reference", String(64), nullable=False),
    Column("booked_at", Moment, nullable=False),
    Column("actor", String(128)),
    Column("reason", Text),
    Index("ix_ledger_transactions_reference", "reference"),
)

ledger_postings = Table(
    "ledger_postings",
    metadata,
    Column("transaction_id", String(96), ForeignKey("ledger_transactions.id"), primary_key=True),
    Column("account_id", String(128), ForeignKey("ledger_accounts.id"), primary_key=True),
    Column("picos", Picos, nullable=False),
    CheckConstraint("picos <> 0", name="not_zero"),
    Index("ix_ledger_postings_account_id", "account_id"),
)

holds = Table(
    "holds",
    metadata,
    _id(),
    Column("payer_id", String(64), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("amount", Picos, nullable=False),
    Column("source", String(128), nullable=False),
    Column("placed_at", Moment, nullable=False),
    Column("opened", Text, nullable=False),
    Column("status", String(16), nullable=False),
    CheckConstraint("amount >= 0", name="not_negative"),
    CheckConstraint("status IN ('placed', 'settled', 'suspended')", name="status"),
    Index("ix_holds_status_source", "status", "source"),
)

usage_events = Table(
    "usage_events",
    metadata,
    _id(),
    Column("source", String(128), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("organisation_id", String(64), nullable=False),
    Column("department_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("payer_id", String(64), nullable=False),
    Column("model", String(255), nullable=False),
    Column("ended_at", Moment, nullable=False),
    Column("settled_at", Moment, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("amount", Picos, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("source", "sequence"),
    CheckConstraint("outcome IN ('settled', 'suspended')", name="outcome"),
    Index("ix_usage_events_department_id_settled_at", "department_id", "settled_at"),
    Index("ix_usage_events_organisation_id_settled_at", "organisation_id", "settled_at"),
    Index("ix_usage_events_ended_at", "ended_at"),
)

charge_lines = Table(
    "charge_lines",
    metadata,
    Column("event_id", String(64), ForeignKey("usage_events.id"), primary_key=True),
    Column("meter", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("picos_per_unit", Picos, nullable=False),
    Column("picos", Picos, nullable=False),
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
    usage_events,
    charge_lines,
    quarantined_events,
)
