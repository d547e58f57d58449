"""A SQLite file of the gateway's own: all of a change or none, and one failure for every trouble."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steelyard.errors import Failure
from steelyard.gateway.local_store import LocalStore

SCHEMA = "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, count INTEGER NOT NULL)"
ADD = "INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET count = count + 1"


class CountsUnavailable(Failure):
    """Counts cannot be kept."""

    code = "counts_unavailable"


def _open(path: Path) -> LocalStore:
    return LocalStore(path, SCHEMA, failure=CountsUnavailable)


def test_what_is_written_is_there_in_the_next_life(tmp_path: Path) -> None:
    store = _open(tmp_path / "new folder" / "counts.db")
    assert store.write(ADD, ("a",)) == 1
    store.close()

    again = _open(tmp_path / "new folder" / "counts.db")

    assert again.rows("SELECT * FROM counts") == [("a", 1)]
    assert again.row("SELECT * FROM counts WHERE name = ?", ("b",)) is None
    again.close()


def test_of_a_transaction_that_breaks_off_nothing_is_left(tmp_path: Path) -> None:
    store = _open(tmp_path / "counts.db")

    with pytest.raises(ZeroDivisionError), store.transaction() as counts:
        counts.execute(ADD, ("a",))
        _ = 1 / 0

    assert store.rows("SELECT * FROM counts") == []
    store.close()


def test_threads_of_two_gateways_lose_no_change(tmp_path: Path) -> None:
    stores = [_open(tmp_path / "counts.db") for _ in range(2)]

    def add(number: int) -> None:
        stores[number % 2].write(ADD, ("a",))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))

    assert stores[0].row("SELECT count FROM counts") == (200,)
    for store in stores:
        store.close()


def test_every_trouble_is_the_failure_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "no.db").write_bytes(b"no database " * 100)
    store = _open(tmp_path / "counts.db")

    with pytest.raises(CountsUnavailable, match=r"counts\.db"):
        store.rows("SELECT * FROM missing")
    with pytest.raises(CountsUnavailable), store.transaction() as counts:
        counts.execute("INSERT INTO counts VALUES (NULL, NULL)")
    with pytest.raises(CountsUnavailable):
        _open(tmp_path / "file" / "counts.db")
    with pytest.raises(CountsUnavailable) as told:
        _open(tmp_path / "no.db")
    assert isinstance(told.value.__cause__, sqlite3.Error)
    store.close()
