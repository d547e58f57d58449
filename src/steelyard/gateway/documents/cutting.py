"""Cuts a text into parts of at most so many of the model's own tokens, at the ends of paragraphs,
lines, sentences or words where that can be."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

CountTokens = Callable[[str], Awaitable[int]]
BLOCK_CHARACTERS: Final = 6_000
_ENDS: Final = ("\n\n", "\n", ". ", "。", "！", "？", "；", " ", "，", "、")
# Two blocks side by side may have a token more than the blocks alone.
SEAM_TOKENS: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the text, and how many tokens it has at most."""

    text: str
    tokens_max: int


async def cut_text(text: str, *, tokens_max: int, count: CountTokens) -> list[Part]:
    """Parts that are the text again when they are joined."""
    parts: list[Part] = []
    held, held_tokens = "", 0
    todo = _blocks(text)
    todo.reverse()
    while todo:
        block = todo.pop()
        tokens = await count(block) + SEAM_TOKENS
        if tokens > tokens_max:
            assert len(block) > 1, "a character fits into any part"
            todo += reversed(_halves(block))
            continue
        if held and held_tokens + tokens > tokens_max:
            parts.append(Part(held, held_tokens))
            held, held_tokens = "", 0
        held, held_tokens = held + block, held_tokens + tokens
    return [*parts, Part(held, held_tokens)]


def _blocks(text: str) -> list[str]:
    blocks: list[str] = []
    at = 0
    while at < len(text):
        end = _end_of(text, at, at + BLOCK_CHARACTERS)
        blocks.append(text[at:end])
        at = end
    return blocks


def _halves(block: str) -> list[str]:
    middle = _end_of(block, 0, len(block) // 2)
    return [block[:middle], block[middle:]]


def _end_of(text: str, at: int, most: int) -> int:
    """Where to cut: behind the best end in the last half, or hard."""
    if most >= len(text):
        return len(text)
    for end in _ENDS:
        found = text.rfind(end, at + (most - at) // 2, most)
        if found >= 0:
            return found + len(end)
    return max(at + 1, most)
