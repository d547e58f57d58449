"""Bounds on a token count that need no tokenizer.

A byte-level tokenizer never gives more tokens than the text has UTF-8 bytes, and every token stands
for at most as many bytes as the longest piece of the vocabulary. So most requests pass, and absurd
ones are refused, without a count.
"""

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What an upstream says about the tokenizer of a model."""

    sha256: str
    is_byte_level: bool
    bytes_per_token_max: int
    template_tokens_base: int
    template_tokens_per_message: int
    special_tokens_added: int


class PromptSize(msgspec.Struct, frozen=True):
    """The size of a prompt before anybody tokenized it.

    `kept_bytes` is the part of the text that every template keeps: what users said, without the
    white space around it. `message_count` is zero where no template is applied. `extra_tokens` are
    for what is no text of the client's: images, sound, and what a template writes around tools.
    """

    text_bytes: int
    kept_bytes: int
    message_count: int
    extra_tokens: int = 0


def input_tokens_upper_bound(size: PromptSize, *, facts: TokenizerFacts) -> int | None:
    """No prompt of this size has more tokens; None where the tokenizer allows no such bound."""
    if not facts.is_byte_level:
        return None
    if not size.message_count:
        return size.text_bytes + facts.special_tokens_added + size.extra_tokens
    template = facts.template_tokens_base + facts.template_tokens_per_message * size.message_count
    return size.text_bytes + template + size.extra_tokens


def input_tokens_lower_bound(size: PromptSize, *, facts: TokenizerFacts) -> int:
    """No prompt of this size has fewer tokens."""
    if not facts.is_byte_level:
        return 0
    return -(-size.kept_bytes // facts.bytes_per_token_max)
