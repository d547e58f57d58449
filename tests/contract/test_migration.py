"""Migrations lead to exactly the tables that the program uses."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from steelyard.storage.database import BooksNotReady, BooksUnavailable, open_database, sqlite_url
from steelyard.storage.migration import HEAD, SCRIPTS, check_version, migrate
from steelyard.storage.schema import metadata
from tests.conftest import MakeSettings


def test_the_migrated_tables_are_those_of_the_schema(make_settings: MakeSettings) -> None:
    settings = make_settings()
    settings.data_dir.mkdir(parents=True)
    database = open_database(settings.database_url or sqlite_url(settings.books_path))
    migrate(database)

    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)

    database.close()
    assert differences == []


def test_migrating_again_changes_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings()
    settings.data_dir.mkdir(parents=True)
    database = open_database(settings.database_url or sqlite_url(settings.books_path))

    migrate(database)
    migrate(database)

    check_version(database)
    database.close()


def test_the_newest_migration_is_the_one_that_the_program_asks_for() -> None:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)

    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_books_that_were_never_made_are_a_clear_error(tmp_path: Path) -> None:
    database = open_database(sqlite_url(tmp_path / "books.db"))

    with pytest.raises(BooksNotReady, match="steelyard init"):
        check_version(database)

    database.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "postgresql://127.0.0.1:1/none"])
def test_a_database_that_is_no_use_is_a_clear_error(url: str) -> None:
    with pytest.raises(BooksUnavailable):
        check_version(open_database(url))
