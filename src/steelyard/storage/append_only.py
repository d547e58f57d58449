"""Triggers that refuse to change or delete what was written once."""

from collections.abc import Iterable, Iterator

_POSTGRES_FUNCTION = """
CREATE OR REPLACE FUNCTION steelyard_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only';
END $$
"""


def append_only_statements(tables: Iterable[str], *, dialect: str) -> Iterator[str]:
    """The statements that make these tables append-only."""
    if dialect == "sqlite":
        for table in tables:
            for verb in ("UPDATE", "DELETE"):
                yield (
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    yield _POSTGRES_FUNCTION
    for table in tables:
        yield (
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION steelyard_refuse_change()"
        )
