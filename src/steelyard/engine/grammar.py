"""Keeps an answer inside a JSON schema, token by token; llguidance knows how."""

from typing import Any

import llguidance
import llguidance.hf
import msgspec
import numpy
import torch

from steelyard.engine.refusals import InvalidRequest

# What {"type": "json_object"} promises, and nothing more.
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class GrammarMaker:
    """One tokenizer, prepared once for all its grammars."""

    def __init__(
        self, tokenizer: Any, *, vocabulary_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._tokenizer = llguidance.hf.from_tokenizer(
            tokenizer, n_vocab=vocabulary_size, eos_token=list(eos_token_ids)
        )

    def make(self, schema: dict[str, Any]) -> "Grammar":
        """The grammar of a schema, or a refusal that says what is wrong with it."""
        try:
            text = llguidance.LLMatcher.grammar_from_json_schema(
                msgspec.json.encode(schema).decode(), defaults={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise _refusal(str(error)) from error
        matcher = llguidance.LLMatcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return Grammar(matcher, vocabulary_size=self._vocabulary_size)


class Grammar:
    """The state of one answer in its schema."""

    def __init__(self, matcher: Any, *, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def forbidden(self, logits: torch.Tensor) -> torch.Tensor:
        """True for each token that must not come next; the end is allowed when all is said."""
        packed = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        bits = numpy.unpackbits(packed, bitorder="little")[: self._vocabulary_size]
        is_forbidden = torch.ones(logits.shape[-1], dtype=torch.bool)
        is_forbidden[: len(bits)] = torch.from_numpy(bits == 0)
        return is_forbidden.to(logits.device)

    def advance(self, token_id: int) -> None:
        """Say which token came."""
        taken = self._matcher.consume_token(token_id)
        assert taken, f"token {token_id} is not of the grammar: {self._matcher.get_error()}"


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the schema cannot be followed: {reason}", param="response_format")
