"""The fast path: the same count, ten to a hundred times sooner, and only while it is the same.

`gigatoken` counts; the reference library stays the authority. When a tokenizer is opened, both
count the probes and a fresh sample of generated texts, id by id. One difference, and the fast path
is not used, and says so.
"""

import json
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from steelyard.counting.libraries import byte_of_character
from steelyard.counting.pin import Pin
from steelyard.counting.probe_texts import PROBES, generated_texts
from steelyard.metering.tokenizer import Tokenizer, check_encodable

log = structlog.get_logger()

SAMPLE_COUNT: Final = 256
Encode = Callable[[str], Sequence[int]]


class FastTokenizer:
    """Counts by the fast path, and everything else by the authority."""

    def __init__(
        self, authority: Tokenizer, encode: Encode, *, names: Sequence[str], missing: bytes = b""
    ) -> None:
        self._authority = authority
        self._encode = encode
        # The fast path takes a special token's name for the token, wherever it stands.
        self._names = re.compile("|".join(map(re.escape, names))) if names else None
        # Bytes that the vocabulary has no piece for: the authority knows what becomes of them.
        self._missing = re.compile(b"[" + re.escape(missing) + b"]") if missing else None

    def encode(self, text: str) -> list[int]:
        return self._authority.encode(text)

    def count(self, text: str) -> int:
        check_encodable(text)
        if self._is_doubtful(text):
            return self._authority.count(text)
        return len(self._encode(text))

    def fast_ids(self, text: str) -> list[int]:
        """The ids behind `count`, for the self-check."""
        check_encodable(text)
        if self._is_doubtful(text):
            return self._authority.encode(text)
        return [int(token_id) for token_id in self._encode(text)]

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return self._authority.pieces(token_ids)

    def _is_doubtful(self, text: str) -> bool:
        if self._names and self._names.search(text):
            return True
        return bool(self._missing and self._missing.search(text.encode()))


def add_fast_path(
    authority: Tokenizer, vocabulary: bytes, pin: Pin, *, seed: int | None = None
) -> Tokenizer:
    """The tokenizer with a fast path, or as it was where there is none that agrees."""
    try:
        fast = _open_fast(authority, vocabulary, pin)
    except ImportError:
        log.info("fast_path.not_installed", package="gigatoken")
        return authority
    if fast is None:
        return authority
    seed = secrets.randbits(32) if seed is None else seed
    difference = first_difference(fast, authority, seed=seed)
    if difference is None:
        return fast
    log.error(
        "fast_path.refused",
        vocabulary_sha256=pin.vocabulary_sha256,
        seed=seed,
        text=ascii(difference[:80]),
    )
    return authority


def first_difference(fast: FastTokenizer, authority: Tokenizer, *, seed: int) -> str | None:
    """The first text of the self-check on which the two disagree. None of them is a user's."""
    texts = [*(probe.text for probe in PROBES), *generated_texts(seed, SAMPLE_COUNT)]
    for text in texts:
        if fast.fast_ids(text) != authority.encode(text):
            return text
    return None


def _open_fast(authority: Tokenizer, vocabulary: bytes, pin: Pin) -> FastTokenizer | None:
    import gigatoken

    try:
        tokenizer = _read_fast(gigatoken, vocabulary, pin)
    except BaseException as error:
        # Its Rust code panics on vocabularies that it cannot hold, outside of Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [""])[0]
        log.warning("fast_path.unsupported", format=pin.format, reason=reason[:200])
        return None
    if tokenizer is None:
        return None
    names = _names(pin) if pin.specials_in_text == "ordinary" else []
    missing = missing_bytes(vocabulary) if _is_byte_level_json(pin) else b""
    return FastTokenizer(
        authority, _normalized(tokenizer.encode, pin), names=names, missing=missing
    )


def _normalized(encode: Encode, pin: Pin) -> Encode:
    normalizer = pin.normalizer
    if normalizer is None:
        return encode
    return lambda text: encode(unicodedata.normalize(normalizer, text))


def _read_fast(gigatoken: Any, vocabulary: bytes, pin: Pin) -> Any:
    match pin.format:
        case "tokenizer.json":
            if _is_byte_level_json(pin) and (missing := missing_bytes(vocabulary)):
                vocabulary = _with_pieces_for(missing, vocabulary)
            return gigatoken.Tokenizer.from_json(vocabulary)
        case "sentencepiece":
            return gigatoken.Tokenizer.from_sentencepiece(vocabulary)
        case "ranks" if pin.fast_scheme is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "vocabulary.tiktoken"
                path.write_bytes(vocabulary)
                return gigatoken.Tokenizer.from_tiktoken(
                    path, pin.fast_scheme, special_tokens=_parsed_specials(pin)
                )
        case _:
            return None


def missing_bytes(vocabulary: bytes) -> bytes:
    """Bytes for which a byte-level tokenizer.json has no piece of their own, as SmolLM2 has none
    for 0x04."""
    pieces = json.loads(vocabulary)["model"]["vocab"]
    return bytes(byte for character, byte in byte_of_character().items() if character not in pieces)


def _with_pieces_for(missing: bytes, vocabulary: bytes) -> bytes:
    """The fast path wants a piece for every byte. What it gets is never counted: see `_missing`."""
    document: dict[str, Any] = json.loads(vocabulary)
    pieces: dict[str, int] = document["model"]["vocab"]
    added = [entry["id"] for entry in document.get("added_tokens", [])]
    first_id = max([*pieces.values(), *added]) + 1
    lacking = [c for c, byte in byte_of_character().items() if byte in missing]
    pieces.update({character: first_id + i for i, character in enumerate(lacking)})
    return json.dumps(document).encode()


def _is_byte_level_json(pin: Pin) -> bool:
    return pin.format == "tokenizer.json" and pin.family == "byte_bpe"


def _parsed_specials(pin: Pin) -> dict[str, int]:
    return pin.special_tokens if pin.specials_in_text == "parsed" else {}


def _names(pin: Pin) -> list[str]:
    """Names that the fast path would parse although the authority does not."""
    if pin.format == "sentencepiece":
        return ["<s>", "</s>", "<unk>"]
    return []
