"""Facts about a tokenizer that let a caller bound a prompt's tokens without tokenizing it."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Message = dict[str, Any]
Roles = tuple[str, ...]
_ROLES: Final = ("system", "user", "assistant", "tool")
_PROBE_STARTS: Final[tuple[Roles, ...]] = (
    (),
    ("user",),
    ("system",),
    ("system", "user"),
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "user", "assistant"),
)
# Contents that could merge with, or break up, the template's own text around them.
_PROBE_CONTENTS: Final = ("", "x", " ", "\n", "\n\n", " x", "'s", "1", "你", "<", "|>")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a caller may rely on, all of it measured when the model was loaded."""

    tokenizer_sha256: str
    byte_level: bool
    bytes_per_token_max: int
    template_tokens_base: int
    template_tokens_per_message: int
    special_tokens_added: int
    eos_token_ids: tuple[int, ...]


def hash_tokenizer(tokenizer: Any, folder: Path) -> str:
    """SHA-256 over the bytes of tokenizer.json, one zero byte, and the chat template in UTF-8."""
    path = folder / "tokenizer.json"
    definition = (
        path.read_bytes() if path.exists() else tokenizer.backend_tokenizer.to_str().encode()
    )
    template = tokenizer.chat_template or ""
    if not isinstance(template, str):
        template = json.dumps(template, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(definition + b"\0" + template.encode()).hexdigest()


def is_byte_level(definition: dict[str, Any]) -> bool:
    """Whether a text can never have more tokens than UTF-8 bytes, special tokens aside."""
    model = definition["model"]
    if model["type"] != "BPE" or model.get("end_of_word_suffix"):
        return False
    # Any normalizer counts as growing: even NFC may turn 4 bytes into 12.
    if definition.get("normalizer") is not None or model.get("continuing_subword_prefix"):
        return False
    steps = _flatten(definition.get("pre_tokenizer"), key="pretokenizers")
    byte_steps = [step for step in steps if step["type"] == "ByteLevel"]
    others = {step["type"] for step in steps} - {"ByteLevel", "Split", "Digits"}
    # A prefix space would add a byte to every stretch between special tokens.
    return bool(byte_steps) and not others and not any(s["add_prefix_space"] for s in byte_steps)


def measure_bytes_per_token(tokenizer: Any, *, byte_level: bool) -> int:
    """The length in UTF-8 bytes of the longest text that one token can stand for."""
    added = tokenizer.get_added_vocab()
    pieces = tokenizer.get_vocab().keys() - added.keys()
    # A byte-level piece is spelt with one character per byte.
    longest_piece = max((len(p) if byte_level else len(p.encode()) for p in pieces), default=1)
    return max(longest_piece, max((len(token.encode()) for token in added), default=1))


def measure_template(count_tokens: Callable[[list[Message]], int | None]) -> tuple[int, int]:
    """Base and per-message tokens a template adds at most, by rendering probe conversations.

    `count_tokens` answers None where the template refuses the roles.
    """
    overheads = _measure_overheads(count_tokens)
    # One spare token a message: a content that breaks a merge the probes did not think of.
    per_message = max(_rises(overheads), default=0) + 1
    bases = [tokens - per_message * len(roles) for roles, tokens in overheads.items()]
    return max([*bases, 0]), per_message


def _measure_overheads(count_tokens: Callable[[list[Message]], int | None]) -> dict[Roles, int]:
    """For each order of roles that the template takes, the most it adds to the contents' bytes."""
    overheads: dict[Roles, int] = {}
    orders = {(*start, role) for start in _PROBE_STARTS for role in _ROLES}
    for roles, content in itertools.product(sorted(orders), _PROBE_CONTENTS):
        tokens = count_tokens([{"role": role, "content": content} for role in roles])
        if tokens is not None:
            overhead = tokens - len(roles) * len(content.encode())
            overheads[roles] = max(overheads.get(roles, 0), overhead)
    return overheads


def _rises(overheads: dict[Roles, int]) -> Iterator[int]:
    # Compared with its own beginning only: many templates add a system message of their own to a
    # conversation that has none, which counts once and not for every message.
    for roles, tokens in overheads.items():
        for length in range(1, len(roles)):
            if (before := overheads.get(roles[:length])) is not None:
                # Rounded up: a fraction of a token is a token.
                yield -((before - tokens) // (len(roles) - length))


def _flatten(step: dict[str, Any] | None, *, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]
