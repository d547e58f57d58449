"""Exported files before the validators of FOCUS: the Foundation's for 1.2, a linter for 1.4."""

import csv
import re
import subprocess
from collections.abc import Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.billing_period import read_month
from steelyard.billing.period_closing import close_period
from steelyard.billing.refund import refund_event
from steelyard.entrypoints.cli.main import application
from steelyard.settings import read_settings
from tests.focus_environment import find_environment
from tests.fund_world import NOW, FundWorld, Used

pytestmark = pytest.mark.slow

# What of FOCUS's conditions our bills meet.
APPLICABLE = (
    "ACCOUNT_NAMING_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED",
    "UNIT_PRICING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
)
# The rules contradict each other: one wants every InvoiceId empty, the other none, both without the
# condition that their text has. Each file breaks exactly one of them: of a closed period the first.
CONTRADICTORY = {"InvoiceId-C-004-C", "InvoiceId-C-005-C"}


@pytest.fixture(scope="module")
def validators() -> Path:
    programs = find_environment()
    if programs is None:
        pytest.skip("the FOCUS validator needs Python 3.12, and there is none")
    return programs


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FundWorld]:
    """Usage of November, a refund of it and a refund of October."""
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path / "data"))
    with FundWorld(read_settings(data_dir=tmp_path / "data")) as world, capture_logs():
        world.clock.moment = NOW - timedelta(days=40)
        world.top_up(100 * 10**12)
        for days in (10, 24, 1, 1):
            world.clock.moment += timedelta(days=days)
            hold = world.place(3 * 3_333_333, tokens=3)
            world.settle(Used(hold, picos=3 * 3_333_333, tokens=3))
            if days != 24:
                refund_event(world.books, hold.id, picos=3_333_333, command=world.command())
        yield world


def export(folder: Path, *, version: str, file_format: str) -> Path:
    file = folder / f"focus-{version}.{file_format}"
    words = ["export", "focus", "acme", "--period", "2026-11", "--out", str(file)]
    words += ["--focus-version", version, "--format", file_format]
    result = CliRunner().invoke(application, words)
    assert result.exit_code == 0, result.output
    return file


def broken_rules(validators: Path, file: Path) -> set[str]:
    """What the Foundation's validator finds wrong under FOCUS 1.2."""
    [packages] = (validators.parent / "lib").glob("python3.*/site-packages")
    words = [validators / "focus-validator", "--data-file", file, "--validate-version", "1.2.0.1"]
    words += ["--block-download", "--applicability-criteria", ",".join(APPLICABLE)]
    # It looks for its list of currencies from where it stands.
    report = subprocess.run(words, cwd=packages, capture_output=True, text=True, check=True).stdout
    passed = re.search(r"Pass: (\d+)", report)
    assert passed is not None, report
    assert int(passed[1]) > 200, report
    return set(re.findall(r"^❌ ([\w-]+): FAIL", report, re.MULTILINE))


def lint(validators: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """The linter of FOCUS 1.4."""
    words = [validators / "focus-toolkit", "validate", "--dataset", "cost-and-usage", file]
    words += ["--supports", "SupportsUnitPricing"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_focus_1_2_passes_the_validator_of_the_foundation(
    file_format: str, validators: Path, books: FundWorld, tmp_path: Path
) -> None:
    file = export(tmp_path, version="1.2", file_format=file_format)

    broken = broken_rules(validators, file)

    assert broken == {"InvoiceId-C-005-C"}
    assert broken < CONTRADICTORY


def test_an_invoiced_period_passes_both_validators(
    validators: Path, books: FundWorld, tmp_path: Path
) -> None:
    acme = replace(books.acme, tax_ppm=190_000)
    period = read_month("2026-11", time_zone="UTC")
    books.clock.moment = period.end + timedelta(minutes=1)
    close_period(books.books, acme, period=period, command=books.command())
    old, new = (export(tmp_path, version=v, file_format="csv") for v in ("1.2", "1.4"))

    broken, linted = broken_rules(validators, old), lint(validators, new)

    assert broken == {"InvoiceId-C-004-C"}
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_focus_1_4_passes_the_linter(
    file_format: str, validators: Path, books: FundWorld, tmp_path: Path
) -> None:
    file = export(tmp_path, version="1.4", file_format=file_format)

    linted = lint(validators, file)

    assert linted.returncode == 0, linted.stdout
    assert "STRUCTURAL_VALID, SEMANTIC_VALID" in linted.stdout


def test_both_validators_find_what_is_wrong(
    validators: Path, books: FundWorld, tmp_path: Path
) -> None:
    old, new = (export(tmp_path, version=v, file_format="csv") for v in ("1.2", "1.4"))
    for file in (old, new):
        with file.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows([{**row, "ChargeCategory": "Use", "ListCost": "5.5"} for row in rows])

    assert broken_rules(validators, old) - CONTRADICTORY
    linted = lint(validators, new)
    assert linted.returncode != 0
    assert "cost_not_unit_price_times_quantity" in linted.stdout + linted.stderr
