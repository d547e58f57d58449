"""A private PostgreSQL server for the tests: its own folder, its own port, gone at the end."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

START_TIMEOUT_S = 60


def find_binaries() -> Path | None:
    """The folder with initdb and postgres, where PostgreSQL's server is installed."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        candidates.append(Path(on_path).parent)
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


@dataclass(frozen=True)
class PostgresServer:
    """A running server; `restart` is what a crash and a new start look like to its clients."""

    url: str
    folder: Path
    control: tuple[str | Path, ...]
    start: tuple[str | Path, ...]
    user: str | None

    def restart(self) -> None:
        self.run(*self.control, "-m", "immediate", "stop")
        self.run(*self.start)

    def run(self, *command: str | Path) -> None:
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, capture_output=True)


@contextmanager
def running_postgres(binaries: Path, *, options: str = "-c fsync=off") -> Generator[str]:
    """Start a server and give the URL of its maintenance database."""
    with serving_postgres(binaries, options=options) as server:
        yield server.url


@contextmanager
def serving_postgres(binaries: Path, *, options: str) -> Generator[PostgresServer]:
    """Start a server that can be restarted."""
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="steelyard-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        database, port = folder / "data", free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} {options}"
        control = (binaries / "pg_ctl", "-D", database, "-w", "-t", str(START_TIMEOUT_S))
        url = f"postgresql://steelyard@127.0.0.1:{port}/postgres"
        start = (*control, "-l", folder / "log", "-o", options, "start")
        server = PostgresServer(url, folder, control, start, user)
        server.run(
            binaries / "initdb", "-D", database, "-U", "steelyard", "-A", "trust", "--no-sync"
        )
        server.run(*start)
        try:
            yield server
        finally:
            server.run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def create_database(server_url: str, name: str, *, template: str = "template1") -> str:
    """A new database on the server, as a copy of another; returns its URL."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    return server_url.rsplit("/", 1)[0] + f"/{name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
