"""Filling in between a beginning and an end: with special tokens that a model was trained with.

Imports neither torch nor transformers.
"""

from collections.abc import Container
from typing import Final, NamedTuple


class FillInMarks(NamedTuple):
    """What stands before the beginning, before the end, and before what is to be filled in."""

    prefix: str
    suffix: str
    middle: str

    def write(self, prefix: str, suffix: str) -> str:
        """The prompt, in the order that all of these models were trained with."""
        return f"{self.prefix}{prefix}{self.suffix}{suffix}{self.middle}"


KNOWN_MARKS: Final = (
    # Qwen Coder, CodeGemma and many others.
    FillInMarks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    # StarCoder and Granite.
    FillInMarks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    FillInMarks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # DeepSeek.
    FillInMarks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def find_marks(added_tokens: Container[str]) -> FillInMarks | None:
    """Those of a tokenizer, by its special tokens; None where it cannot fill in."""
    for marks in KNOWN_MARKS:
        if all(mark in added_tokens for mark in marks):
            return marks
    return None
