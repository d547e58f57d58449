"""The guides do what they say, command by command."""

import csv
from pathlib import Path

import pytest
from pypdf import PdfReader

from steelyard.app.configuration import read_configuration
from steelyard.billing.statement import read_balance
from steelyard.entrypoints.cli.output import console
from steelyard.money import read_decimal
from steelyard.settings import read_settings
from tests.docs.guide import check_guide
from tests.world import World

GUIDES = Path(__file__).parents[2] / "docs" / "guide"


@pytest.mark.slow
def test_a_month_is_closed_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("USER", "finance")
    monkeypatch.setenv("LOGNAME", "finance")
    monkeypatch.setattr(console, "_width", 150)

    with World(read_settings(data_dir=tmp_path / "data")) as world:
        check_guide(GUIDES / "close-a-month.md", world, tmp_path)
        acme = world.stores.access.find_organisation("acme")
        with world.stores.reports.snapshot() as snapshot:
            left = read_balance(snapshot, acme).total

    pages = PdfReader(tmp_path / "october.pdf").pages
    paid_in, promotional = 100 * 10**12, 10**12 // 2
    total = 93 * 10**10
    # What is left is what was paid in, less the total; the promotional credit is used up.
    assert paid_in - left.picos == total
    assert _sum(tmp_path / "october.csv", "amount") == total
    assert _sum(tmp_path / "october-focus.csv", "BilledCost") == total
    assert "0.93 EUR" in " ".join(page.extract_text() for page in pages)
    assert promotional == -_sum(tmp_path / "october.csv", "amount", kind="promotional_credit")


def test_limits_and_keys_work_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(console, "_width", 150)

    with World(read_settings(data_dir=tmp_path / "data")) as world:
        check_guide(GUIDES / "limits.md", world, tmp_path)
        limits = world.stores.access.limits()
        key = world.stores.access.find_key("acme/support/desk")

    assert key.revoked_at is not None
    assert limits["key", key.id].requests_per_minute == 3
    assert limits["department", key.department.id].tokens_per_minute == 3000


@pytest.mark.parametrize("guide", ["configure-upstreams.md", "from-litellm.md"])
def test_a_configuration_is_checked_as_the_guide_says(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-told")
    monkeypatch.setattr(console, "_width", 150)

    with World(read_settings(data_dir=tmp_path / "data")) as world:
        check_guide(GUIDES / guide, world, tmp_path)

    rules = read_configuration(tmp_path / "steelyard.toml").rules
    assert rules is not None
    assert "openai" in rules.upstreams


def _sum(path: Path, column: str, *, kind: str | None = None) -> int:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if kind in {None, row.get("kind")}]
    return sum(read_decimal(row[column]) for row in rows)
