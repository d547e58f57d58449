"""The price commands, as a person types them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelyard.entrypoints.cli.main import application
from steelyard.entrypoints.cli.prices_import import ConfirmationMissing, FileUnwritable
from steelyard.pricing.price_book_yaml import PriceBaseNotFound, PriceBookMalformed, read_price_book
from steelyard.pricing.store import PriceVersionTaken

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "price_books" / "demo.yaml")


@pytest.fixture(autouse=True)
def _books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    _run("init")


def _run(*words: str) -> str:
    result = CliRunner().invoke(application, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def _read(*words: str) -> Any:
    return json.loads(_run(*words, "--json"))


def _names() -> list[str]:
    return [row["name"] for row in _read("price", "list")]


def test_an_import_reports_and_publishes_only_after_a_yes(tmp_path: Path) -> None:
    _run("price", "publish", DEMO)
    out = tmp_path / "openai.yaml"
    words = ["price", "import", "genai-prices", "--provider", "openai", "--out", str(out)]

    report = _read(*words)
    before = _names()
    with pytest.raises(ConfirmationMissing):
        _run(*words, "--publish")
    _run(*words, "--publish", "--yes", "--name", "list")

    assert "gpt-4o" in report["added"]
    assert report["removed"] == ["smollm2-135m-instruct"]
    assert sum(report["unsupported_counts"].values()) == len(report["unsupported"]) > 0
    assert len(read_price_book(out.read_text()).models) == report["models"]
    assert before == ["demo-2026-11"]
    assert _names() == ["demo-2026-11", "list"]
    assert _read(*words, "--against", "list", "--name", "again")["changed"] == []


def test_an_import_for_people_says_what_it_leaves_out() -> None:
    text = _run("price", "import", "genai-prices", "--provider", "google")

    for words in ("difference of price books", "fields that have no meter here", "change later"):
        assert words in text


def test_litellms_map_is_imported_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text('{"m": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}}')
    words = ["price", "import", "litellm", str(file), "--name", "map"]

    _run(*words, "--effective-from", "2026-12-01", "--publish", "--yes")

    shown = _read("price", "show", "map")
    assert shown["effective_from"] == "2026-12-01T00:00:00.000000Z"
    assert shown["models"][0]["prices"]["input.text"] == {"amount": "0.15", "per": 1_000_000}
    with pytest.raises(FileUnwritable):
        _run(*words, "--out", str(tmp_path / "none" / "x.yaml"))


def test_a_difference_takes_names_and_files(tmp_path: Path) -> None:
    _run("price", "publish", DEMO)
    file = tmp_path / "new.yaml"
    file.write_text(Path(DEMO).read_text().replace("0.60", "0.70").replace("demo-", "new-"))

    found = _read("price", "diff", "demo-2026-11", str(file))
    text = _run("price", "diff", "demo-2026-11", str(file))

    assert [(c["meter"], c["old"], c["new"]) for c in found["changed"]] == [
        ("output.text", "0.6 per 1M", "0.7 per 1M")
    ]
    assert "0.7 per 1M" in text


def test_a_book_is_looked_over_before_it_is_published(tmp_path: Path) -> None:
    file = tmp_path / "free.yaml"
    file.write_text(Path(DEMO).read_text().replace("0.60", "0"))

    warnings = {row["warning"] for row in _read("price", "lint", str(file))}

    file.write_text("schema: wrong")
    with pytest.raises(PriceBookMalformed):
        _run("price", "lint", str(file))
    assert "zero_price" in warnings


def test_a_book_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    _run("price", "publish", DEMO)
    file = tmp_path / "new.yaml"
    good = Path(DEMO).read_text()
    bad = [
        (good, PriceVersionTaken),
        (good.replace("0.60", "0.61"), PriceVersionTaken),
        (
            good.replace("demo-", "new-").replace("models:", "extends: none\nmodels:"),
            PriceBaseNotFound,
        ),
        (good.replace("demo-", "new-").replace("0.60", "-1"), PriceBookMalformed),
    ]

    for text, refusal in bad:
        file.write_text(text)
        with pytest.raises(refusal):
            _run("price", "publish", str(file))

    assert _names() == ["demo-2026-11"]


def test_a_compiled_book_shows_what_it_was_made_from(tmp_path: Path) -> None:
    _run("price", "publish", DEMO)
    file = tmp_path / "acme.yaml"
    head = Path(DEMO).read_text().partition("models:")[0].replace("demo-", "acme-")
    file.write_text(
        head
        + "applies_to: { organisation: acme }\nextends: demo-2026-11\nadjust: { percent: -10 }\n"
    )

    published = _read("price", "publish", str(file))

    assert published["made_from"] == "demo-2026-11 -10%"
    assert published["applies_to"] == "organisation acme"
    assert [row["in_force"] for row in _read("price", "list")] == [True, True]
    assert "0.135" in _run("price", "show", "acme-2026-11")


def test_the_schema_is_printed_as_it_is() -> None:
    file = REPOSITORY / "src" / "steelyard" / "pricing" / "price_book.schema.json"

    assert json.loads(_run("price", "schema")) == json.loads(file.read_text())
