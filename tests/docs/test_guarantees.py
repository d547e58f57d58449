"""The commands that the guarantees name exist: files, tests that they select, targets, commands."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.test_docs import commands_of_the_program

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "internals" / "guarantees.md").read_text()
COMMANDS = sorted(set(re.findall(r"`((?:pytest|make|steelyard) [^`]+)`", TEXT)))


def test_every_guarantee_has_a_command_that_shows_it() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    shown = [row.strip("| ").split(" | ")[3] for row in rows if not row.startswith("| Guarantee")]
    guarantees = [cell for cell in shown if cell.strip("- ")]

    without = [cell for cell in guarantees if not re.search(r"`(pytest|make|steelyard) ", cell)]

    assert len(guarantees) > 20
    assert without == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pytest")])
def test_what_is_run_exists_and_selects_something(command: str) -> None:
    words = command.split()[1:]
    word = words[words.index("-k") + 1] if "-k" in words else None
    places = [given for given in words if given.startswith("tests/")]

    names = [name for place in places for name in _tests_in(REPOSITORY / place)]

    assert places
    assert all(_tests_in(REPOSITORY / place) for place in places)
    assert word is None or [name for name in names if word in name]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_what_is_made_is_a_target_that_takes_what_it_is_given(command: str) -> None:
    target, *given = command.split()[1:]
    makefile = (REPOSITORY / "Makefile").read_text()

    recipe = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)

    assert recipe
    for variable in re.findall(r"([A-Z]+)=", " ".join(given)):
        assert f"$({variable})" in recipe[1]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("steelyard")])
def test_what_is_asked_of_the_program_is_a_command(command: str) -> None:
    known = commands_of_the_program()

    assert any(command == name or command.startswith(f"{name} ") for name in known)


def _tests_in(place: Path) -> list[str]:
    files = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
    return [
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
