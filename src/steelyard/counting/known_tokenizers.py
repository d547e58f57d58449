"""Vocabularies that we know: by the hash of their file, and by how they count the probes.

A model whose name says what it is has to count as its vocabulary counts. That catches a file that
calls itself by another's name, without a server to ask.
"""

import fnmatch
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec

from steelyard.counting.pin import ChatRule, Normalizer, Pin, SpecialsInText
from steelyard.counting.probe_texts import PROBES, Probe
from steelyard.metering.tokenizer import Family, Tokenizer


class SpecialRun(msgspec.Struct, frozen=True, kw_only=True):
    """Special tokens that differ in a number only; `name` has it as {}."""

    name: str
    first: int
    count: int
    first_id: int


class KnownTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a vocabulary; `probe_counts` are its counts of the probes, in their order.

    `models` are patterns of the names of models that have it; `files` are hashes of its files.
    """

    name: str
    family: Family
    models: list[str]
    files: list[str]
    probe_counts: list[int]
    pattern: str | None = None
    normalizer: Normalizer | None = None
    special_tokens: dict[str, int] = {}
    special_runs: list[SpecialRun] = []
    specials_in_text: SpecialsInText = "parsed"
    prompt_tokens_added: int = 0
    chat: ChatRule = "template"
    fast_scheme: str | None = None

    def all_special_tokens(self) -> dict[str, int]:
        numbered = {
            run.name.format(run.first + i): run.first_id + i
            for run in self.special_runs
            for i in range(run.count)
        }
        return self.special_tokens | numbered


@dataclass(frozen=True, slots=True)
class Difference:
    """The probe on which two counts differ most."""

    probe: Probe
    ours: int
    theirs: int


@functools.cache
def known_tokenizers() -> Mapping[str, KnownTokenizer]:
    """All of them, by name."""
    text = resources.files("steelyard.counting").joinpath("known.toml").read_text("utf-8")
    document: dict[str, Any] = tomllib.loads(text)
    entries = [
        msgspec.convert({"name": name, **entry}, KnownTokenizer) for name, entry in document.items()
    ]
    return {entry.name: entry for entry in entries}


def known_by_file(vocabulary_sha256: str) -> KnownTokenizer | None:
    """The vocabulary that this file is."""
    entries = known_tokenizers().values()
    return next((entry for entry in entries if vocabulary_sha256 in entry.files), None)


def known_by_model(model: str) -> KnownTokenizer | None:
    """The vocabulary that a model of this name has; the longest pattern that fits decides."""
    name = model.lower().rpartition("/")[2]
    fitting = [
        (len(pattern), entry.name)
        for entry in known_tokenizers().values()
        for pattern in entry.models
        if fnmatch.fnmatchcase(name, pattern)
    ]
    return known_tokenizers()[max(fitting)[1]] if fitting else None


def difference_from(known: KnownTokenizer, tokenizer: Tokenizer) -> Difference | None:
    """Where a tokenizer counts the probes otherwise than a known one does, and by how much."""
    return widest_difference(count_probes(tokenizer), known.probe_counts)


def count_probes(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.count(probe.text) for probe in PROBES]


def widest_difference(ours: list[int], theirs: list[int]) -> Difference | None:
    """The probe on which the two differ most; None where they agree on every one."""
    differences = [
        Difference(probe, our, their)
        for probe, our, their in zip(PROBES, ours, theirs, strict=True)
        if our != their
    ]
    return max(differences, key=lambda d: abs(d.ours - d.theirs), default=None)


def pin_of_known(known: KnownTokenizer, *, vocabulary_sha256: str) -> Pin:
    """The pin of a raw file of a known vocabulary, whose rules are in no file."""
    return Pin(
        family=known.family,
        format="ranks",
        vocabulary_sha256=vocabulary_sha256,
        pattern=known.pattern,
        normalizer=known.normalizer,
        special_tokens=known.all_special_tokens(),
        specials_in_text=known.specials_in_text,
        prompt_tokens_added=known.prompt_tokens_added,
        chat=known.chat if known.chat == "openai" else "none",
        fast_scheme=known.fast_scheme,
    )
