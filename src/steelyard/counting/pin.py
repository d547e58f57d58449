"""The pin of a tokenizer: everything that its counts depend on, and the hash over it.

A pin is immutable. Another file, another template or another rule is another pin.
"""

import hashlib
from typing import Any, Final, Literal

import msgspec
import rfc8785

from steelyard.metering.tokenizer import Family

# How the vocabulary is written down, and so which library is the model's own.
Format = Literal["tokenizer.json", "sentencepiece", "ranks", "tekken"]
# Whether a special token's name in a text is that token (transformers, vLLM) or plain text (OpenAI).
SpecialsInText = Literal["parsed", "ordinary"]
ChatRule = Literal["template", "openai", "none"]
Normalizer = Literal["NFC"]
ProofKind = Literal["same_folder", "tokenize", "usage", "known", "none"]

LIBRARIES: Final[dict[Format, str]] = {
    "tokenizer.json": "tokenizers",
    "sentencepiece": "sentencepiece",
    "ranks": "tiktoken",
    "tekken": "tiktoken",
}


class Pin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a tokenizer's counts depend on; hashes are SHA-256 in hexadecimal digits.

    `prompt_tokens_added` is what the model's server puts around a bare prompt, as a beginning of
    sequence. `template_words` are the texts that a chat template knows by name, as bos_token.
    `fast_scheme` names the splitting rule for the fast path of a file of ranks.
    """

    family: Family
    format: Format
    vocabulary_sha256: str
    pattern: str | None = None
    normalizer: Normalizer | None = None
    special_tokens: dict[str, int] = {}
    specials_in_text: SpecialsInText = "parsed"
    prompt_tokens_added: int = 0
    chat: ChatRule = "none"
    chat_template_sha256: str | None = None
    template_words: dict[str, str] = {}
    fast_scheme: str | None = None

    @property
    def sha256(self) -> str:
        """The address of the pin."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return hashlib.sha256(rfc8785.dumps(plain)).hexdigest()


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """How it was shown that the tokenizer is the model's own."""

    kind: ProofKind
    against: str | None = None
    probes: int = 0


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A model and the tokenizer that was pinned for it.

    `served_sha256` is the hash that our engine publishes for the same folder.
    """

    model: str
    pin: Pin
    proof: Proof
    registered_at: str
    known_as: str | None = None
    served_sha256: str | None = None


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
