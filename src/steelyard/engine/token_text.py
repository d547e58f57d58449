"""The bytes that a single token stands for: half a character is still two bytes."""

from functools import lru_cache
from typing import Any


class TokenText:
    """Reads tokens one by one, in the two alphabets that tokenizers write bytes in."""

    def __init__(self, tokenizer: Any, *, is_byte_level: bool) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = is_byte_level

    def read(self, token_id: int) -> bytes:
        """What the token adds to a text, in bytes; the names of special tokens as they are."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            # The model has more rows than its tokenizer has words.
            return b""
        if self._is_byte_level:
            alphabet = _byte_alphabet()
            if all(letter in alphabet for letter in token):
                return bytes(alphabet[letter] for letter in token)
            return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    # GPT-2's table: bytes that can be seen stand for themselves, the others for letters from 256.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    table = {chr(byte): byte for byte in seen}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}
