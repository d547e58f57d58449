"""The reference libraries behind one protocol. What they say is the count; nothing here is clever.

Each library is imported when its first vocabulary is read: no process loads what it does not use.
"""

import base64
import binascii
import functools
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from steelyard.counting.pin import Normalizer, Pin
from steelyard.errors import Failure
from steelyard.metering.tokenizer import Tokenizer, check_encodable

_SPACE: Final = "\u2581"


class TokenizerUnreadable(Failure):
    """The tokenizer's file cannot be read: it is damaged, or of a kind that we do not know."""

    code = "tokenizer_unreadable"


class TokenizerLibraryMissing(Failure):
    """The library that reads this tokenizer is not installed: pip install 'steelyard[tokenizers]'."""

    code = "tokenizer_library_missing"


def open_tokenizer(vocabulary: bytes, pin: Pin) -> Tokenizer:
    """The tokenizer of these bytes, by the library that is the model's own."""
    readers: dict[str, Callable[[bytes, Pin], Tokenizer]] = {
        "tokenizer.json": _HuggingFace,
        "sentencepiece": _SentencePiece,
        "ranks": _open_ranks,
        "tekken": _open_tekken,
    }
    try:
        return readers[pin.format](vocabulary, pin)
    except ImportError as error:
        raise TokenizerLibraryMissing(
            f"{error.name} is not installed: pip install 'steelyard[tokenizers]'"
        ) from error
    except Exception as error:
        # The libraries raise nearly every kind of exception on a bad file.
        first_line = (str(error).splitlines() or [""])[0]
        raise TokenizerUnreadable(
            f"the tokenizer cannot be read as {pin.format} ({type(error).__name__}: {first_line})"
        ) from error


def read_ranks(content: bytes) -> dict[bytes, int]:
    """A file of ranks: a piece in base64 and its rank on each line; raises ValueError."""
    ranks: dict[bytes, int] = {}
    for line in content.splitlines():
        if not line:
            continue
        piece, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except binascii.Error as error:
            raise ValueError(f"{piece[:20]!r} is not base64") from error
    if not ranks:
        raise ValueError("there is no piece in it")
    return ranks


@functools.cache
def byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells each byte as one printable character: GPT-2's table, the other way."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in set(printable))
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


class _HuggingFace:
    """A tokenizer.json, by `tokenizers`."""

    def __init__(self, vocabulary: bytes, pin: Pin) -> None:
        import tokenizers

        self._pin = pin
        self._tokenizer = tokenizers.Tokenizer.from_str(vocabulary.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._is_byte_level = pin.family == "byte_bpe"
        self._added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()

    def encode(self, text: str) -> list[int]:
        check_encodable(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        pieces = [self._piece(token_id) for token_id in token_ids]
        if self._is_byte_level or not pieces:
            return pieces
        return [_without_first_space(pieces[0]), *pieces[1:]]

    def _piece(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id].content).encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        return _byte_level_piece(token) if self._is_byte_level else _space_marked_piece(token)


class _SentencePiece:
    """A SentencePiece model, by `sentencepiece`."""

    def __init__(self, vocabulary: bytes, pin: Pin) -> None:
        import sentencepiece

        del pin
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)

    def encode(self, text: str) -> list[int]:
        check_encodable(text)
        return self._processor.encode(text)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        names: list[str] = [self._processor.id_to_piece(token_id) for token_id in token_ids]
        pieces = [_space_marked_piece(name) for name in names]
        return [_without_first_space(pieces[0]), *pieces[1:]] if pieces else []


class _Ranks:
    """Ranks and a splitting pattern, by `tiktoken`."""

    def __init__(
        self,
        ranks: dict[bytes, int],
        *,
        pattern: str,
        special_tokens: dict[str, int],
        parsed: bool,
        normalizer: Normalizer | None,
    ) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding(
            name="pinned", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
        )
        self._is_parsed = parsed and bool(special_tokens)
        self._normalizer: Normalizer | None = normalizer

    def encode(self, text: str) -> list[int]:
        check_encodable(text)
        if self._normalizer is not None:
            text = unicodedata.normalize(self._normalizer, text)
        if self._is_parsed:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return self._encoding.decode_tokens_bytes(token_ids)


def _open_ranks(vocabulary: bytes, pin: Pin) -> Tokenizer:
    assert pin.pattern is not None, "a file of ranks is pinned with its pattern"
    return _Ranks(
        read_ranks(vocabulary),
        pattern=pin.pattern,
        special_tokens=pin.special_tokens,
        parsed=pin.specials_in_text == "parsed",
        normalizer=pin.normalizer,
    )


class _TekkenPiece(msgspec.Struct):
    rank: int
    token_bytes: str


class _TekkenConfig(msgspec.Struct):
    pattern: str
    default_vocab_size: int
    default_num_special_tokens: int


class TekkenFile(msgspec.Struct):
    """Mistral's tekken.json, as far as counting needs it."""

    config: _TekkenConfig
    vocab: list[_TekkenPiece]


class _Tekken(_Ranks):
    """The same as mistral-common's Tekkenizer: its ids begin after the special ones."""

    def __init__(self, ranks: dict[bytes, int], *, pattern: str, first_id: int) -> None:
        super().__init__(ranks, pattern=pattern, special_tokens={}, parsed=False, normalizer=None)
        self._first_id = first_id

    def encode(self, text: str) -> list[int]:
        return [token_id + self._first_id for token_id in super().encode(text)]

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return super().pieces([token_id - self._first_id for token_id in token_ids])


def _open_tekken(vocabulary: bytes, pin: Pin) -> Tokenizer:
    del pin
    tekken = msgspec.json.decode(vocabulary, type=TekkenFile)
    first_id = tekken.config.default_num_special_tokens
    kept = tekken.config.default_vocab_size - first_id
    ranks = {base64.b64decode(p.token_bytes): p.rank for p in tekken.vocab if p.rank < kept}
    return _Tekken(ranks, pattern=tekken.config.pattern, first_id=first_id)


def _byte_level_piece(token: str) -> bytes:
    table = byte_of_character()
    return bytes(table[character] for character in token)


def _space_marked_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(_SPACE, " ").encode()


def _without_first_space(piece: bytes) -> bytes:
    # The model puts a space before every text, and takes it off again when it decodes.
    return piece.removeprefix(b" ")
