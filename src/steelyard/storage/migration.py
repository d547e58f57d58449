"""Brings the books to the version that this program needs."""

from importlib.resources import files
from typing import Final

from sqlalchemy import inspect

from steelyard.storage.database import BooksNotReady, Database

# Alembic takes a good part of a second to load, so only `migrate` asks it; a test compares.
HEAD: Final = "0002"
SCRIPTS: Final = str(files("steelyard.storage") / "migrations")
# Any fixed number: PostgreSQL lets one process at a time hold it.
_MIGRATION_LOCK: Final = 7_316_021


def migrate(database: Database) -> None:
    """Create or upgrade the tables; does nothing when they are up to date."""
    from alembic import command
    from alembic.config import Config

    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        config = Config()
        config.set_main_option("script_location", SCRIPTS)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_version(database: Database) -> None:
    """Raise BooksNotReady unless the tables are of exactly this program's version."""
    with database.read() as connection:
        found = None
        if inspect(connection).has_table("alembic_version"):
            query = "SELECT version_num FROM alembic_version"
            found = connection.exec_driver_sql(query).scalar_one_or_none()
    if found != HEAD:
        raise BooksNotReady(
            f"the books are at version {found or 'none'}, this program needs {HEAD}: run "
            "'steelyard init' with the services stopped"
        )
