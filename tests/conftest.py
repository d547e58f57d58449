"""Fixtures that every suite may use: books on SQLite and on PostgreSQL, and a world around them."""

import os
import shutil
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from steelyard.settings import Settings, read_settings
from steelyard.storage.database import open_database, sqlite_url
from steelyard.storage.migration import migrate
from tests.postgres_server import create_database, find_binaries, running_postgres

if TYPE_CHECKING:
    from tests.fund_world import FundWorld
    from tests.world import World

_numbers = count(1)
TEMPLATE = "steelyard_template"


# How long Hypothesis takes to draw or to run an example says something of the machine alone.
hypothesis.settings.register_profile(
    "patient",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not leak into tests."""
    for name in list(os.environ):
        if name.startswith("STEELYARD_") and name != "STEELYARD_MODELS_DIR":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """The maintenance URL of a private server with a migrated template database."""
    binaries = find_binaries()
    if binaries is None:
        message = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with running_postgres(binaries) as url:
        template = open_database(create_database(url, TEMPLATE))
        migrate(template)
        template.close()
        yield url


MakeSettings = Callable[..., Settings]
# The inner loop runs on SQLite; every test runs on both.
DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data with migrated books: a copy takes a tenth of the time of a migration."""
    settings = read_settings(data_dir=tmp_path_factory.mktemp("template"))
    template = open_database(sqlite_url(settings.books_path))
    migrate(template)
    template.close()
    return settings.data_dir


@pytest.fixture(params=DATABASES)
def make_settings(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSettings:
    """Settings for fresh books, once on SQLite and once on PostgreSQL."""
    database_url: str | None = None
    if request.param == "sqlite":
        shutil.copytree(request.getfixturevalue("sqlite_template"), tmp_path / "data")
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_url")
        database_url = create_database(server, f"books_{next(_numbers)}", template=TEMPLATE)

    def make(**given: object) -> Settings:
        return read_settings(data_dir=tmp_path / "data", database_url=database_url, **given)

    return make


@pytest.fixture
def world(make_settings: MakeSettings) -> "Generator[World]":
    """Books, outbox, gateway and worker in one process, with a scripted upstream."""
    from tests.world import World

    with World(make_settings()) as built:
        yield built


@pytest.fixture
def sqlite_world(sqlite_template: Path, tmp_path: Path) -> "Generator[World]":
    """A world on SQLite only, for what no database can change."""
    from tests.world import World

    shutil.copytree(sqlite_template, tmp_path / "data")
    with World(read_settings(data_dir=tmp_path / "data")) as built:
        yield built


@pytest.fixture
def funds(make_settings: MakeSettings) -> "Generator[FundWorld]":
    """Books with an organisation and a hold desk, and nothing else."""
    from tests.fund_world import FundWorld

    with FundWorld(make_settings()) as built:
        yield built
