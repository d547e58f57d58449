"""Migrations lead to exactly the tables that the program uses."""

import json
import subprocess
import sys
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
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = open_database(settings.database_url or sqlite_url(settings.books_path))
    migrate(database)

    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)

    database.close()
    assert differences == []


def test_migrating_again_changes_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
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


@pytest.mark.parametrize("version", ["0001", "9999"])
def test_books_of_another_program_are_refused_with_what_to_do(
    version: str, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = open_database(settings.database_url or sqlite_url(settings.books_path))
    migrate(database)
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")

    advice = "another data folder" if version == "0001" else "install the program"
    for act in (migrate, check_version):
        with pytest.raises(BooksNotReady, match=advice) as refused:
            act(database)
        assert refused.value.code == ("books_too_old" if version == "0001" else "books_not_ready")

    with database.read() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    database.close()
    assert found == version


def test_init_over_books_that_are_too_old_is_one_clear_line(tmp_path: Path) -> None:
    database = open_database(sqlite_url(tmp_path / "books.db"))
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num TEXT NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0001')")
    database.close()

    code = "from steelyard.entrypoints.cli.main import run; run()"
    program = [sys.executable, "-c", code, "init", "--data-dir", str(tmp_path), "--json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "books_too_old"
    assert "Traceback" not in done.stderr
