"""The running rows and their KV cache: all rows decode one token together.

Rows of different lengths share one cache by padding on the left; the attention mask hides the
padding, and explicit positions make every row compute what it would compute alone.
"""

from typing import Protocol

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.sequence import Sequence


class Batch(Protocol):
    """Sequences that are past their prompt."""

    rows: list[Sequence]

    def join(self, sequence: Sequence, cache: DynamicCache) -> None:
        """Add a row whose whole prompt is in `cache`."""
        ...

    def keep(self, indices: list[int]) -> None:
        """Let go of every other row, and of its memory."""
        ...

    def decode(self) -> torch.Tensor:
        """Feed each row its last token; one row of logits each."""
        ...


def can_pad(cache: DynamicCache) -> bool:
    """Whether a filled cache is plain full attention, the kind whose rows may be padded."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


class PaddedBatch:
    """One cache for all rows, padded on the left to the longest."""

    def __init__(self, model: LoadedModel) -> None:
        self.rows: list[Sequence] = []
        self._model = model
        self._cache = DynamicCache()
        self._padding: list[int] = []

    def join(self, sequence: Sequence, cache: DynamicCache) -> None:
        if not self.rows:
            self._cache, self._padding = cache, [0]
        else:
            self._merge(cache)
        self.rows.append(sequence)

    def keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[i] for i in indices]
        self._padding = [self._padding[i] for i in indices]
        if not self.rows:
            self._cache = DynamicCache()
            return
        common = min(self._padding)
        self._padding = [padding - common for padding in self._padding]
        picked = torch.tensor(indices, device=self._model.device)
        for layer in _layers(self._cache):
            layer.keys, layer.values = (
                states[..., common:, :].index_select(0, picked) for states in _states(layer)
            )

    def decode(self) -> torch.Tensor:
        length, device = self._cache.get_seq_length(), self._model.device
        padding = torch.tensor(self._padding, device=device).unsqueeze(1)
        last = torch.tensor([[row.token_ids[-1]] for row in self.rows], device=device)
        # All-ones masks are left out: without one, attention takes its faster path.
        mask = None
        if any(self._padding):
            mask = (torch.arange(length + 1, device=device) >= padding).long()
        return self._model.next_logits(
            last, cache=self._cache, position_ids=length - padding, attention_mask=mask
        )

    def _merge(self, cache: DynamicCache) -> None:
        length, length_added = self._cache.get_seq_length(), cache.get_seq_length()
        longest = max(length, length_added)
        self._padding = [padding + longest - length for padding in self._padding]
        self._padding.append(longest - length_added)
        for mine, added in zip(_layers(self._cache), _layers(cache), strict=True):
            mine.keys, mine.values = (
                torch.cat([_pad_left(ours, longest), _pad_left(theirs, longest)])
                for ours, theirs in zip(_states(mine), _states(added), strict=True)
            )


class SeparateRows:
    """Each row with its own cache: slower, and right for every kind of cache."""

    def __init__(self, model: LoadedModel) -> None:
        self.rows: list[Sequence] = []
        self._model = model
        self._caches: list[DynamicCache] = []

    def join(self, sequence: Sequence, cache: DynamicCache) -> None:
        self.rows.append(sequence)
        self._caches.append(cache)

    def keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[i] for i in indices]
        self._caches = [self._caches[i] for i in indices]

    def decode(self) -> torch.Tensor:
        logits = [
            self._decode_row(row, cache) for row, cache in zip(self.rows, self._caches, strict=True)
        ]
        return torch.cat(logits)

    def _decode_row(self, row: Sequence, cache: DynamicCache) -> torch.Tensor:
        device = self._model.device
        position = row.prompt_tokens + row.completion_tokens - 1
        return self._model.next_logits(
            torch.tensor([[row.token_ids[-1]]], device=device),
            cache=cache,
            position_ids=torch.tensor([[position]], device=device),
        )


def _layers(cache: DynamicCache) -> list[DynamicLayer]:
    assert can_pad(cache)
    return cache.layers  # pyright: ignore[reportReturnType]


def _states(layer: DynamicLayer) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.keys is not None, "a layer without states has no rows"
    assert layer.values is not None
    return layer.keys, layer.values


def _pad_left(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))
