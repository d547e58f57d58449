"""Brings the books to the version that this program needs."""

from importlib.resources import files
from typing import Final

from sqlalchemy import Connection, inspect

from steelyard.storage.database import BooksNotReady, BooksTooOld, Database

# Alembic takes a good part of a second to load, so only `migrate` asks it; a test compares.
HEAD: Final = "0003"
SCRIPTS: Final = str(files("steelyard.storage") / "migrations")
# Any fixed number: PostgreSQL lets one process at a time hold it.
_MIGRATION_LOCK: Final = 7_316_021
# Of programs that were never released: their books cannot be brought to a version of today.
_UNRELEASED: Final = frozenset({"0001"})


def migrate(database: Database) -> None:
    """Create or upgrade the tables; does nothing when they are up to date.

    Raises BooksTooOld, and BooksNotReady for books that a newer program has made.
    """
    from alembic import command
    from alembic.config import Config

    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        _check_upgradable(_version_of(connection))
        config = Config()
        config.set_main_option("script_location", SCRIPTS)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_version(database: Database) -> None:
    """Raise BooksNotReady unless the tables are of exactly this program's version."""
    with database.read() as connection:
        found = _version_of(connection)
    _check_upgradable(found)
    if found != HEAD:
        raise BooksNotReady(
            f"the books are at version {found or 'none'}, this program needs {HEAD}: run "
            "'steelyard init' with the services stopped"
        )


def _version_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    query = "SELECT version_num FROM alembic_version"
    return connection.exec_driver_sql(query).scalar_one_or_none()


def _check_upgradable(version: str | None) -> None:
    if version in _UNRELEASED:
        raise BooksTooOld(
            f"the books are at version {version}, made by a program that was never released; there "
            "is no way from there to this one. Keep them with that program, name another data "
            "folder or database, and run 'steelyard init'"
        )
    if version is not None and version > HEAD:
        raise BooksNotReady(
            f"the books are at version {version}, newer than this program, which needs {HEAD}: "
            "install the program that made them"
        )
