"""Alembic migrations of the books; each brings the tables one version further."""
