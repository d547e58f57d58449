"""The fast path is used while it agrees, and not a moment longer."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
from structlog.testing import capture_logs

from steelyard.counting import fast_path
from steelyard.counting.fast_path import (
    FastTokenizer,
    add_fast_path,
    first_difference,
    missing_bytes,
)
from steelyard.counting.libraries import byte_of_character, open_tokenizer
from steelyard.counting.pin import Pin
from tests.counting.vocabularies import fast, found, reference
from tests.engine.tiny_model import make_tiny_model


class _Liar:
    """A fast path that is wrong about one script."""

    def __init__(self, encode: "fast_path.Encode") -> None:
        self._encode = encode

    def __call__(self, text: str) -> Sequence[int]:
        ids = list(self._encode(text))
        return [*ids, 0] if any("\u0621" <= character <= "\u064a" for character in text) else ids


def test_one_wrong_script_is_enough_to_find_the_difference(vocabulary_folder: Path) -> None:
    authority = reference("o200k", vocabulary_folder)
    liar = FastTokenizer(authority, _Liar(authority.encode), names=[])

    difference = first_difference(liar, authority, seed=1)

    assert difference is not None
    assert any("\u0621" <= character <= "\u064a" for character in difference)


def test_a_vocabulary_that_is_split_by_another_rule_falls_back_and_says_so(
    vocabulary_folder: Path,
) -> None:
    files = found("qwen", vocabulary_folder)
    wrong = msgspec.structs.replace(files.pin, fast_scheme="o200k")
    authority = reference("qwen", vocabulary_folder)

    with capture_logs() as logs:
        tokenizer = add_fast_path(authority, files.vocabulary, wrong, seed=3)

    assert tokenizer is authority
    assert [entry["event"] for entry in logs] == ["fast_path.refused"]
    assert logs[0]["log_level"] == "error"


def test_a_vocabulary_that_it_cannot_hold_falls_back_and_says_so(vocabulary_folder: Path) -> None:
    files = found("llama-3", vocabulary_folder)
    tried = msgspec.structs.replace(files.pin, fast_scheme="cl100k")
    authority = reference("llama-3", vocabulary_folder)

    with capture_logs() as logs:
        tokenizer = add_fast_path(authority, files.vocabulary, tried, seed=3)

    assert tokenizer is authority
    assert [entry["event"] for entry in logs] == ["fast_path.unsupported"]


def test_a_special_tokens_name_in_a_text_is_counted_as_the_authority_counts_it(
    vocabulary_folder: Path,
) -> None:
    authority = reference("llama-2", vocabulary_folder)
    quick = fast("llama-2", vocabulary_folder)

    counts = {text: quick.count(text) for text in ("<s>", "a</s>b", "<unk> <s>")}

    assert isinstance(quick, FastTokenizer)
    assert counts == {text: authority.count(text) for text in counts}


def test_a_byte_that_the_vocabulary_lacks_is_counted_as_the_authority_counts_it(
    tmp_path: Path,
) -> None:
    source = json.loads((make_tiny_model(tmp_path / "tiny") / "tokenizer.json").read_bytes())
    lacking = {character for character, byte in byte_of_character().items() if byte in b"\x04q"}
    kept = {p: i for p, i in source["model"]["vocab"].items() if not lacking & set(p)}
    source["model"]["vocab"] = kept
    source["model"]["merges"] = [m for m in source["model"]["merges"] if "".join(m) in kept]
    vocabulary = json.dumps(source).encode()
    pin = Pin(family="byte_bpe", format="tokenizer.json", vocabulary_sha256="")
    authority = open_tokenizer(vocabulary, pin)

    quick = add_fast_path(authority, vocabulary, pin, seed=3)

    assert isinstance(quick, FastTokenizer)
    assert sorted(missing_bytes(vocabulary)) == sorted(b"\x04q")
    for text in ("the quick fox", "a\x04b", "plain"):
        assert quick.count(text) == authority.count(text)
