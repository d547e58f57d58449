"""Exports: every row of a period, exact, and no file that does not add up."""

import csv
import json
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.correction import correct_balance
from steelyard.billing.refund import refund_event
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.ledger.hold import Hold
from steelyard.money import Money
from tests.conftest import MakeSettings
from tests.fund_world import USD, FundWorld, Used

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
WHOLE = 10**12


@pytest.fixture
def books(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[FundWorld]:
    """Books that the commands find by the environment, with a thousand dollars in September."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with FundWorld(settings) as world, capture_logs():
        world.clock.moment = OCTOBER - timedelta(days=2)
        world.top_up(1000 * WHOLE)
        yield world


def use(books: FundWorld, at: datetime, *, picos: int, tokens: int) -> Hold:
    """One request that ended then."""
    books.clock.moment = at
    hold = books.place(picos, tokens=tokens)
    books.settle(Used(hold, picos=picos, tokens=tokens))
    return hold


def export(kind: str, out: Path, *words: str, month: str | None = "2026-10") -> Any:
    period = ["--period", month] if month else []
    command = ["export", kind, "acme", *period, "--out", str(out), *words, "--json"]
    result = CliRunner().invoke(application, command)
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def total(rows: Sequence[Mapping[str, Any]], column: str) -> Decimal:
    return sum((Decimal(row[column]) for row in rows), Decimal())


def test_every_exported_row_is_exact_and_they_add_up(books: FundWorld, tmp_path: Path) -> None:
    use(books, OCTOBER - timedelta(microseconds=1), picos=7 * WHOLE, tokens=7)
    use(books, OCTOBER, picos=3 * 3_333_333, tokens=3)
    use(books, OCTOBER + timedelta(minutes=59), picos=5 * 3_333_333, tokens=5)
    use(books, OCTOBER + timedelta(days=30, hours=23, minutes=59), picos=WHOLE, tokens=1)
    use(books, OCTOBER + timedelta(days=31), picos=9 * WHOLE, tokens=9)

    said = export("focus", tmp_path / "focus.csv")

    rows = read_csv(tmp_path / "focus.csv")
    assert [row["ChargePeriodStart"] for row in rows] == [
        "2026-10-01T00:00:00Z",
        "2026-10-31T23:00:00Z",
    ]
    assert rows[0]["ConsumedQuantity"] == "8.0"
    for row in rows:
        cost = Decimal(row["PricingQuantity"]) * Decimal(row["ContractedUnitPrice"])
        assert cost == Decimal(row["BilledCost"]) == Decimal(row["ContractedCost"])
    assert Decimal(said["total"]) == total(rows, "BilledCost")
    assert total(rows, "BilledCost") == 1 + 8 * Decimal("0.000003333333")


def test_both_files_and_both_formats_say_the_same(books: FundWorld, tmp_path: Path) -> None:
    refunded = use(books, OCTOBER - timedelta(days=1), picos=4 * WHOLE, tokens=4)
    use(books, OCTOBER + timedelta(days=3), picos=6 * WHOLE, tokens=2)
    refund_event(books.books, refunded.id, picos=WHOLE, command=books.command())
    correct_balance(books.books, books.acme, amount=Money(1, USD), command=books.command())

    for file_format in ("csv", "parquet"):
        for version in ("1.2", "1.4"):
            words = ("--format", file_format, "--focus-version", version)
            export("focus", tmp_path / f"{version}.{file_format}", *words)
        export("usage", tmp_path / f"usage.{file_format}", "--format", file_format)

    for version in ("1.2", "1.4"):
        rows = read_csv(tmp_path / f"{version}.csv")
        columns = parquet.read_table(tmp_path / f"{version}.parquet").to_pylist()
        assert total(rows, "BilledCost") == total(columns, "BilledCost") == 5 - Decimal("1e-12")
        assert [row["ChargeCategory"] for row in rows] == ["Usage", "Credit", "Adjustment"]
        assert [row["ChargeClass"] for row in rows] == ["", "Correction", ""]
        assert all(isinstance(row["BilledCost"], Decimal) for row in columns)
    usage = read_csv(tmp_path / "usage.csv")
    typed = parquet.read_table(tmp_path / "usage.parquet").to_pylist()
    assert total(usage, "amount") == total(typed, "amount") == 5 - Decimal("1e-12")
    assert [row["kind"] for row in usage] == ["usage", "refund", "correction"]


def test_a_month_is_that_of_the_organisation_even_where_hours_are_cut(
    books: FundWorld, tmp_path: Path
) -> None:
    CliRunner().invoke(application, ["org", "set", "acme", "--time-zone", "Asia/Kolkata"])
    start = datetime(2026, 9, 30, 18, 30, tzinfo=UTC)
    end = datetime(2026, 10, 31, 18, 30, tzinfo=UTC)
    for at, dollars in ((start, 2), (end, 16)):
        use(books, at - timedelta(microseconds=1), picos=dollars * WHOLE, tokens=1)
        use(books, at, picos=2 * dollars * WHOLE, tokens=1)

    export("focus", tmp_path / "month.csv")

    rows = read_csv(tmp_path / "month.csv")
    assert [
        (row["BilledCost"], row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in rows
    ] == [
        ("4.0", "2026-09-30T18:30:00Z", "2026-09-30T19:00:00Z"),
        ("16.0", "2026-10-31T18:00:00Z", "2026-10-31T18:30:00Z"),
    ]


def test_an_export_that_does_not_add_up_leaves_no_file(books: FundWorld, tmp_path: Path) -> None:
    use(books, OCTOBER, picos=WHOLE, tokens=1)
    (tmp_path / "focus.csv").write_text("before")
    with books.stores.database.engine.begin() as connection:
        connection.execute(text("UPDATE usage_hours SET picos = picos + 1"))

    with pytest.raises(SteelyardError) as raised:
        export("focus", tmp_path / "focus.csv")

    assert raised.value.code == "export_disagrees"
    assert [path.name for path in tmp_path.glob("*.csv")] == ["focus.csv"]
    assert (tmp_path / "focus.csv").read_text() == "before"
    assert list(tmp_path.glob(".*.csv-*")) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nobody", "--period", "2026-10"], "tenant_not_found"),
        (["acme", "--period", "2026-13"], "period_malformed"),
        (["acme", "--period", "october"], "period_malformed"),
        (["acme"], "period_malformed"),
        (["acme", "--from", "2026-10-01T00:00:00Z"], "period_malformed"),
        (["acme", "--from", "2026-10-01", "--to", "2026-10-02"], "period_malformed"),
        (
            ["acme", "--from", "2026-10-02T00:00:00Z", "--to", "2026-10-01T00:00:00Z"],
            "period_malformed",
        ),
        (["acme", "--period", "2026-10", "--from", "2026-10-01T00:00:00Z"], "period_malformed"),
        (["acme", "--period", "2026-10", "--out", "nowhere/at/all.csv"], "export_unwritable"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_exported_is_refused_with_its_code(
    words: Sequence[str], code: str, books: FundWorld, tmp_path: Path
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "out.csv")]

    result = CliRunner().invoke(application, ["export", "usage", *words, *out])

    assert isinstance(result.exception, SteelyardError), result.output
    assert result.exception.code == code
    assert list(tmp_path.glob("*.csv")) == []
    assert books.differences() == []
