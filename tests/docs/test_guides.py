"""The guides do what they say, command by command."""

from pathlib import Path

import pytest

from steelyard.entrypoints.cli.output import console
from steelyard.settings import read_settings
from tests.docs.guide import check_guide
from tests.world import World

GUIDES = Path(__file__).parents[2] / "docs" / "guide"


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
