"""Finds a tokenizer in a model's folder or a file, and works out its pin."""

import gzip
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from steelyard.counting.known_tokenizers import known_by_file, known_tokenizers, pin_of_known
from steelyard.counting.libraries import TokenizerUnreadable
from steelyard.counting.pin import Format, Pin, hash_bytes
from steelyard.errors import Refusal
from steelyard.metering.tokenizer import Family

# In the order in which a folder is searched: the first that is there is the model's own.
_NAMES: Final = ("tokenizer.json", "tokenizer.model", "tekken.json")
_SUFFIXES: Final = (".tiktoken", ".tiktoken.gz", ".model")
FILE_BYTES_MAX: Final = 256 * 1024 * 1024


class TokenizerNotFound(Refusal):
    """There is no tokenizer here."""

    code = "tokenizer_not_found"


class TokenizerPatternMissing(Refusal):
    """A file of ranks does not say how text is split before it is merged."""

    code = "tokenizer_pattern_missing"


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _Word(msgspec.Struct):
    content: str


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as it was found: its bytes, its chat template, and the pin over both.

    `served_sha256` is what our engine would publish for this folder.
    """

    vocabulary: bytes
    chat_template: str | None
    pin: Pin
    known_as: str | None
    served_sha256: str | None
    vocabulary_size_stated: int | None


def read_tokenizer_files(source: Path, *, like: str | None = None) -> TokenizerFiles:
    """Read a folder or a file; `like` names a known vocabulary whose splitting rule it has."""
    path = _find(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenizerNotFound(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise TokenizerUnreadable(f"{path} is too large to be a tokenizer")
    vocabulary = _unzip(content, path)
    chat_template = _chat_template(path.parent) if source.is_dir() else None
    pin, known_as = _pin(vocabulary, path, like=like)
    if chat_template is not None:
        digest = hash_bytes(chat_template.encode())
        pin = msgspec.structs.replace(
            pin,
            chat="template",
            chat_template_sha256=digest,
            template_words=_template_words(path.parent),
        )
    found = TokenizerFiles(vocabulary, chat_template, pin, known_as, None, None)
    if path.name == "tokenizer.json" and source.is_dir():
        return replace(
            found,
            served_sha256=_served_sha256(vocabulary, chat_template),
            vocabulary_size_stated=_stated_size(source),
        )
    return found


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise TokenizerNotFound(f"there is no file or folder {source}")
    named = [source / name for name in _NAMES if (source / name).is_file()]
    others = sorted(p for p in source.iterdir() if p.name.endswith(_SUFFIXES))
    if not named and not others:
        raise TokenizerNotFound(
            f"{source} has no {', '.join(_NAMES)} and no file of ranks (*.tiktoken)"
        )
    return (named or others)[0]


def _unzip(content: bytes, path: Path) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise TokenizerUnreadable(f"{path} is damaged: {error}") from error


def _pin(vocabulary: bytes, path: Path, *, like: str | None) -> tuple[Pin, str | None]:
    digest = hash_bytes(vocabulary)
    known = known_by_file(digest)
    kind = _format(vocabulary)
    if kind == "ranks":
        rule = known_tokenizers().get(like) if like else known
        if rule is None or rule.pattern is None:
            names = ", ".join(sorted(n for n, k in known_tokenizers().items() if k.pattern))
            raise TokenizerPatternMissing(
                f"{path} holds ranks of a vocabulary that we do not know, and a file of ranks does "
                f"not say how text is split; say it with --like, one of: {names}"
            )
        return pin_of_known(rule, vocabulary_sha256=digest), known.name if known else None
    family: Family = "byte_bpe" if kind == "tekken" else "sentencepiece"
    added = 0
    if kind == "tokenizer.json":
        family, added = _look_into_json(vocabulary, path)
    elif known:
        added = known.prompt_tokens_added
    pin = Pin(
        family=family,
        format=kind,
        vocabulary_sha256=digest,
        specials_in_text="parsed" if kind == "tokenizer.json" else "ordinary",
        prompt_tokens_added=added,
    )
    return pin, known.name if known else None


def _format(vocabulary: bytes) -> Format:
    if vocabulary[:1] == b"{":
        try:
            names = msgspec.json.decode(vocabulary, type=dict[str, msgspec.Raw]).keys()
        except msgspec.DecodeError as error:
            raise TokenizerUnreadable(f"the tokenizer's file is no JSON: {error}") from error
        return "tekken" if {"config", "vocab"} <= names else "tokenizer.json"
    first_line = vocabulary.partition(b"\n")[0]
    is_ranks = first_line.rpartition(b" ")[2].strip().isdigit()
    return "ranks" if is_ranks else "sentencepiece"


def _look_into_json(vocabulary: bytes, path: Path) -> tuple[Family, int]:
    """The family of a tokenizer.json, and how many tokens it puts around a bare prompt."""
    try:
        document: dict[str, Any] = json.loads(vocabulary)
        model: dict[str, Any] = document["model"]
    except (ValueError, KeyError) as error:
        raise TokenizerUnreadable(f"{path} is no tokenizer.json: {error}") from error
    # A vocabulary of SentencePiece's spells bytes that it lacks as <0x00> to <0xFF>.
    is_sentencepiece = bool(model.get("byte_fallback")) or model.get("type") == "Unigram"
    return ("sentencepiece" if is_sentencepiece else "byte_bpe"), _tokens_around(vocabulary)


def _tokens_around(vocabulary: bytes) -> int:
    try:
        import tokenizers
    except ImportError:
        # Opening it will say so, with a name.
        return 0
    try:
        return len(tokenizers.Tokenizer.from_str(vocabulary.decode()).encode("").ids)
    except Exception as error:
        # The library raises bare exceptions of its own for whatever it cannot read.
        raise TokenizerUnreadable(f"tokenizer.json cannot be read: {error}") from error


def _chat_template(folder: Path) -> str | None:
    """The template of a model's folder: its own file, or a field of tokenizer_config.json."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    stated = _read_config(folder / "tokenizer_config.json").get("chat_template")
    try:
        if isinstance(stated, list):
            templates = msgspec.convert(stated, list[_NamedTemplate])
            return next((t.template for t in templates if t.name == "default"), None)
        return msgspec.convert(stated, str | None)
    except msgspec.ValidationError as error:
        raise TokenizerUnreadable(f"the chat template cannot be read: {error}") from error


def _template_words(folder: Path) -> dict[str, str]:
    """The special tokens that transformers hands to a template by name."""
    config = _read_config(folder / "tokenizer_config.json")
    stated = {name: value for name, value in config.items() if name.endswith("_token") and value}
    try:
        words = msgspec.convert(
            {n: v for n, v in stated.items() if not isinstance(v, bool)}, dict[str, str | _Word]
        )
    except msgspec.ValidationError as error:
        raise TokenizerUnreadable(f"the special tokens cannot be read: {error}") from error
    return {name: word if isinstance(word, str) else word.content for name, word in words.items()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerUnreadable(f"{path} is damaged: {error}") from error


def _served_sha256(vocabulary: bytes, chat_template: str | None) -> str:
    """As the engine hashes them: the file, one zero byte, the template."""
    return hashlib.sha256(vocabulary + b"\0" + (chat_template or "").encode()).hexdigest()


def _stated_size(folder: Path) -> int | None:
    document = _read_config(folder / "config.json")
    size = document.get("vocab_size", document.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else None
