"""The tables of tenants and their keys, and the metadata that all tables belong to."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from steelyard.storage.column_types import Moment

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def id_column(name: str = "id", *, primary_key: bool = True) -> Column[str]:
    return Column(name, String(64), primary_key=primary_key, nullable=False)


organisations = Table(
    "organisations",
    metadata,
    id_column(),
    Column("name", String(63), nullable=False, unique=True),
    Column("currency", String(3), nullable=False),
    Column("time_zone", String(64), nullable=False),
    Column("tax_ppm", Integer, nullable=False),
    Column("plan", String(63)),
    Column("created_at", Moment, nullable=False),
    CheckConstraint("tax_ppm BETWEEN 0 AND 1000000", name="tax_ppm"),
)

departments = Table(
    "departments",
    metadata,
    id_column(),
    Column("organisation_id", String(64), ForeignKey("organisations.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("pays_from", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("organisation_id", "name"),
    CheckConstraint("pays_from IN ('organisation', 'department')", name="pays_from"),
)

projects = Table(
    "projects",
    metadata,
    id_column(),
    Column("department_id", String(64), ForeignKey("departments.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("department_id", "name"),
)

virtual_keys = Table(
    "virtual_keys",
    metadata,
    id_column(),
    Column("department_id", String(64), ForeignKey("departments.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id")),
    Column("name", String(63), nullable=False),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("hint", String(32), nullable=False),
    Column("disconnect_policy", String(16)),
    Column("cache_ttl_s", Integer),
    Column("created_at", Moment, nullable=False),
    Column("revoked_at", Moment),
    Column("expires_at", Moment),
    UniqueConstraint("department_id", "name"),
    Index("ix_virtual_keys_revoked_at", "revoked_at"),
)

# Secrets that were replaced, and work until they end.
replaced_secrets = Table(
    "replaced_secrets",
    metadata,
    Column("secret_hash", String(64), primary_key=True),
    Column("key_id", String(64), ForeignKey("virtual_keys.id"), nullable=False),
    Column("ends_at", Moment, nullable=False),
)

# What a place of the tree, or a model, allows; lists have one entry a line.
limits = Table(
    "limits",
    metadata,
    Column("scope", String(16), primary_key=True),
    Column("scope_id", String(256), primary_key=True),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("requests_at_once", Integer),
    Column("input_tokens_max", Integer),
    Column("output_tokens_max", Integer),
    Column("models", Text, nullable=False),
    Column("ip_ranges", Text, nullable=False),
    CheckConstraint(
        "scope IN ('organisation', 'department', 'project', 'key', 'model')", name="scope"
    ),
)

# How a shared department's cost is split among others of its organisation.
chargeback_weights = Table(
    "chargeback_weights",
    metadata,
    Column("shared_department_id", String(64), ForeignKey("departments.id"), primary_key=True),
    Column("department_id", String(64), ForeignKey("departments.id"), primary_key=True),
    Column("weight", BigInteger, nullable=False),
    CheckConstraint("weight > 0", name="weight"),
)
