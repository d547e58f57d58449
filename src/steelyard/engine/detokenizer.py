"""Turns token ids into text as they come, never showing half of a character."""

from collections.abc import Callable, Sequence
from typing import Final

REPLACEMENT: Final = "\ufffd"


class Detokenizer:
    """Pieces of text that join to the decoding of all ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        # Some tokenizers drop the space of the first token they decode, so each decoding begins
        # one clean stretch early, at _context, and only what follows _shown characters is new.
        self._context = 0
        self._clean = 0
        self._shown = 0

    def add(self, token_id: int) -> str:
        """The new text that is certain after one more token; it may be empty."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids[self._context :])
        # A trailing U+FFFD may be the first bytes of a character that is still coming.
        certain = text.rstrip(REPLACEMENT)
        piece = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        if len(certain) == len(text) and piece:
            self._move_context()
        return piece

    def flush(self) -> str:
        """What was held back, as it stands: no more tokens will come."""
        text = self._decode(self._token_ids[self._context :])
        piece = text[self._shown :]
        self._shown = len(text)
        return piece

    def _move_context(self) -> None:
        self._context, self._clean = self._clean, len(self._token_ids)
        self._shown = len(self._decode(self._token_ids[self._context :]))
