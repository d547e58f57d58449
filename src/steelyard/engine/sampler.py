"""Chooses the next token of each sequence from its own logits with its own random numbers.

The order: what the grammar forbids, penalties, temperature, top-k, top-p, min-p. Log probabilities
are those of the model itself, before any of these.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from steelyard.engine.grammar import Grammar

# Below this, dividing by the temperature overflows float32 long before it changes the answer.
GREEDY_BELOW: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one sequence picks its tokens."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    # How many of the likeliest tokens to tell beside the drawn one; None tells none at all.
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1 or self.top_p == 0.0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the drawn token was, and which were the likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """The next token, and what was asked to know of it."""

    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Draws for one sequence; its batch mates cannot change what it draws."""

    def __init__(
        self, sampling: Sampling, *, device: torch.device, grammar: Grammar | None = None
    ) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._generator = torch.Generator(device=device)
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self._generator.manual_seed(seed)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the best token is all that is wanted, so that rows can be drawn together."""
        sampling = self._sampling
        return (
            sampling.is_greedy
            and not sampling.has_penalties
            and sampling.logprobs is None
            and self._grammar is None
        )

    def draw(self, logits: torch.Tensor, context: "Context") -> Draw:
        """One token from a row of logits, after what was said before."""
        logits = logits.float()
        allowed = logits
        if self._grammar is not None:
            allowed = logits.masked_fill(self._grammar.forbidden(logits), -torch.inf)
        if self._sampling.has_penalties:
            allowed = self._penalise(allowed, context)
        token_id = self._choose(allowed)
        if self._grammar is not None:
            self._grammar.advance(token_id)
        if self._sampling.logprobs is None:
            return Draw(token_id)
        return Draw(token_id, _logprob_of(token_id, logits, count=self._sampling.logprobs))

    def _choose(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        if sampling.is_greedy:
            return int(logits.argmax())
        scaled = logits / sampling.temperature
        if 0 < sampling.top_k < scaled.shape[-1]:
            scaled = _keep_top_k(scaled, sampling.top_k)
        probabilities = scaled.softmax(-1)
        if sampling.top_p < 1.0:
            probabilities = _keep_top_p(probabilities, sampling.top_p)
        if sampling.min_p > 0.0:
            floor = probabilities.max() * sampling.min_p
            probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _penalise(self, logits: torch.Tensor, context: "Context") -> torch.Tensor:
        sampling, device = self._sampling, logits.device
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*context.prompt, *context.answer}), device=device)
            scores = logits[seen]
            scaled = torch.where(
                scores > 0,
                scores / sampling.repetition_penalty,
                scores * sampling.repetition_penalty,
            )
            logits = logits.index_copy(0, seen, scaled)
        if context.answer and (sampling.presence_penalty or sampling.frequency_penalty):
            said, counts = torch.tensor(context.answer, device=device).unique(return_counts=True)
            lost = counts * sampling.frequency_penalty + sampling.presence_penalty
            logits = logits.index_add(0, said, -lost.to(logits.dtype))
        return logits


@dataclass(frozen=True, slots=True)
class Context:
    """What penalties look at: only the repetition penalty also counts the prompt."""

    prompt: Sequence[int]
    answer: Sequence[int]


def _logprob_of(token_id: int, logits: torch.Tensor, *, count: int) -> TokenLogprob:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(count, len(logprobs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), top)


def _keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    best = logits.topk(top_k)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)


def _keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(descending=True)
    # A token stays while those before it have not reached top_p, so the best one always stays.
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
