"""Chooses the next token of each sequence from its own logits with its own random numbers."""

import secrets
from dataclasses import dataclass
from typing import Final

import torch

# Below this, dividing by the temperature overflows float32 long before it changes the answer.
GREEDY_BELOW: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one sequence picks its tokens."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1 or self.top_p == 0.0


class Sampler:
    """Draws for one sequence; its batch mates cannot change what it draws."""

    def __init__(self, sampling: Sampling, *, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device=device)
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self._generator.manual_seed(seed)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the best token is all that is wanted, so that rows can be drawn together."""
        return self._sampling.is_greedy

    def draw(self, logits: torch.Tensor) -> int:
        """One token id from a row of logits."""
        if self._sampling.is_greedy:
            return int(logits.argmax())
        scaled = logits.float() / self._sampling.temperature
        if 0 < self._sampling.top_k < scaled.shape[-1]:
            scaled = _keep_top_k(scaled, self._sampling.top_k)
        probabilities = scaled.softmax(-1)
        if self._sampling.top_p < 1.0:
            probabilities = _keep_top_p(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    best = logits.topk(top_k)
    return torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)


def _keep_top_p(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(descending=True)
    # A token stays while those before it have not reached top_p, so the best one always stays.
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
