"""The exports of a closed period are its invoice: every sum is the same to the pico."""

import csv
import json
from collections.abc import Generator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.billing_period import read_month
from steelyard.billing.correction import correct_balance
from steelyard.billing.invoice_csv import invoice_rows
from steelyard.billing.period_closing import Closed, close_period
from steelyard.billing.refund import refund_event
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.money import Money
from tests.conftest import MakeSettings
from tests.fund_world import USD, FundWorld, Used

NOVEMBER = read_month("2026-11", time_zone="UTC")
PICOS = 3_333_333_333


@pytest.fixture
def books(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[FundWorld]:
    """Usage paid from promotional credit and from a balance, some beyond its hold; adjustments."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with FundWorld(settings) as world, capture_logs():
        world.give(PICOS, days=300)
        world.top_up(10**12)
        for tokens in (3, 7, 11):
            hold = world.place(tokens * PICOS, tokens=tokens)
            world.settle(Used(hold, picos=tokens * PICOS, tokens=tokens))
            refund_event(world.books, hold.id, picos=PICOS // 3, command=world.command())
        beyond = world.place(PICOS)
        world.settle(Used(beyond, picos=2 * PICOS, tokens=2))
        correct_balance(world.books, world.acme, amount=Money(7, USD), command=world.command())
        yield world


def test_invoice_and_exports_and_ledger_have_one_total(books: FundWorld, tmp_path: Path) -> None:
    before = _funds(books)
    uncovered = books.balances()["suspense:USD"]
    closed = _close(books)
    total = Decimal(closed.invoice.total)

    usage = _export(tmp_path / "usage.csv", "usage")
    bills = [
        _export(tmp_path / f"{version}.csv", "focus", "--focus-version", version)
        for version in ("1.2", "1.4")
    ]

    section = closed.invoice.sections[0]
    taken = 10**12 - (_funds(books) - _promotional(books))
    assert total > 0
    assert Decimal(taken) / 10**12 == total
    assert before - _funds(books) == _picos(section.tax) + _picos(section.rounding)
    assert sum(Decimal(row["amount"]) for row in invoice_rows(closed.invoice)) == total
    assert sum(Decimal(row["amount"]) for row in usage) == total
    assert {row["invoice"] for row in usage} == {"acme-0001"}
    for rows in bills:
        assert sum(Decimal(row["BilledCost"]) for row in rows) == total
        assert {row["InvoiceId"] for row in rows} == {"acme-0001"}
        assert {"Usage", "Credit", "Adjustment", "Tax"} == {row["ChargeCategory"] for row in rows}
    assert _picos(section.not_covered) == -uncovered == PICOS
    kinds = {"usage", "refund", "correction", "not_covered", "promotional_credit"}
    assert {row["kind"] for row in usage} == kinds | {"tax", "rounding"}


def test_a_period_that_is_not_closed_names_no_invoice(books: FundWorld, tmp_path: Path) -> None:
    rows = _export(tmp_path / "focus.csv", "focus")
    usage = _export(tmp_path / "usage.csv", "usage")

    assert {row["InvoiceId"] for row in rows} == {row["invoice"] for row in usage} == {""}
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Credit", "Adjustment"}


def test_an_export_that_is_not_its_invoice_leaves_no_file(books: FundWorld, tmp_path: Path) -> None:
    closed = _close(books)
    other = f'"total":"{Decimal(closed.invoice.total) + 1}"'
    canonical = closed.issued.canonical.replace(f'"total":"{closed.invoice.total}"', other)
    with books.stores.database.engine.begin() as connection:
        if books.stores.database.is_sqlite:
            named = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for (name,) in connection.execute(text(named)).fetchall():
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE invoices SET canonical = :new"), {"new": canonical})

    with pytest.raises(SteelyardError) as raised:
        _export(tmp_path / "focus.csv", "focus")

    assert raised.value.code == "export_disagrees"
    assert not (tmp_path / "focus.csv").exists()


def _close(books: FundWorld) -> Closed:
    books.clock.moment = NOVEMBER.end + timedelta(minutes=1)
    acme = replace(books.acme, tax_ppm=190_000)
    return close_period(books.books, acme, period=NOVEMBER, command=books.command())


def _export(out: Path, kind: str, *words: str) -> list[dict[str, str]]:
    command = ["export", kind, "acme", "--period", "2026-11", "--out", str(out), *words, "--json"]
    result = CliRunner().invoke(application, command)
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads(result.stdout)["rows"] == len(rows)
    return rows


def _funds(books: FundWorld) -> int:
    return sum(grant.picos for grant in books.funds().grants)


def _promotional(books: FundWorld) -> int:
    return sum(g.picos for g in books.funds().grants if g.grant.kind == "promotional")


def _picos(amount: str) -> int:
    return int(Decimal(amount) * 10**12)
