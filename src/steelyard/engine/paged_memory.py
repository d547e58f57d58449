"""Keys and values of all sequences, in blocks; and attention that reads them where they lie.

All rows of a step go through the model as one line of tokens. Every layer calls `paged_attention`
(registered with transformers under its name) with the new keys and values: it writes them to their
slots, and lets each row look at its own slots only. A row whose blocks lie side by side is read in
place; one in several pieces is gathered first.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from steelyard.engine.block_pool import BLOCK_TOKENS

PAGED: Final = "steelyard_paged"
# Some models ask their attention for more than this file does; they are run row by row.
_NOT_DONE_HERE: Final = ("softcap", "s_aux", "sliding_window", "position_bias")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one token of one layer takes."""

    heads: int
    key_size: int
    value_size: int

    @property
    def numbers(self) -> int:
        return self.heads * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True)
class Paging:
    """What trying has shown: the shapes of the layers, or None for a model run row by row."""

    shapes: list[LayerShape] | None


class PagedMemory:
    """Two tensors for each layer, heads first: a sequence's slots are a slice or a gather."""

    def __init__(
        self, shapes: list[LayerShape], *, blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        slots = blocks * BLOCK_TOKENS
        self.keys = [
            torch.empty(shape.heads, slots, shape.key_size, dtype=dtype, device=device)
            for shape in shapes
        ]
        self.values = [
            torch.empty(shape.heads, slots, shape.value_size, dtype=dtype, device=device)
            for shape in shapes
        ]


@dataclass(frozen=True, slots=True)
class RowView:
    """Where a row stands in the line, which slots it sees, and which of them each token may see."""

    begin: int
    end: int
    slots: slice | torch.Tensor
    mask: torch.Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What every layer needs to know of a step."""

    memory: PagedMemory
    new_slots: torch.Tensor
    rows: list[RowView]


def view_row(blocks: list[int], *, begin: int, end: int, at: int, device: torch.device) -> RowView:
    """The view of a row that feeds positions begin to end, and stands at `at` in the line."""
    fed = end - begin
    mask = None
    if begin > 0 and fed > 1:
        mask = torch.ones(fed, end, dtype=torch.bool, device=device).tril(begin)
    return RowView(
        begin=at,
        end=at + fed,
        slots=_slots(blocks, end, device=device),
        mask=mask,
        is_causal=begin == 0 and fed > 1,
    )


def slots_between(blocks: list[int], begin: int, end: int) -> list[int]:
    """The slots of positions begin to end."""
    return [
        blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for position in range(begin, end)
    ]


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step_layout: StepLayout,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: [1, heads, tokens, size] in, tokens first out."""
    assert attention_mask is None, "the layout already says who sees whom"
    assert all(others.get(name) is None for name in _NOT_DONE_HERE), "attention with extras"
    keys = step_layout.memory.keys[module.layer_idx]
    values = step_layout.memory.values[module.layer_idx]
    keys.index_copy_(1, step_layout.new_slots, key[0])
    values.index_copy_(1, step_layout.new_slots, value[0])
    answers = [
        _attend(query[:, :, row.begin : row.end], keys, values, row, scaling)
        for row in step_layout.rows
    ]
    return torch.cat(answers, dim=1), None


AttentionInterface.register(PAGED, paged_attention)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: RowView,
    scaling: float | None,
) -> torch.Tensor:
    if isinstance(row.slots, slice):
        seen_keys, seen_values = keys[:, row.slots], values[:, row.slots]
    else:
        seen_keys = keys.index_select(1, row.slots)
        seen_values = values.index_select(1, row.slots)
    heads, tokens = query.shape[1], query.shape[2]
    if tokens == 1:
        # The heads that share a key stand in for tokens: no key is read twice.
        grouped = query.view(1, keys.shape[0], heads // keys.shape[0], query.shape[3])
        seen = scaled_dot_product_attention(
            grouped, seen_keys[None], seen_values[None], scale=scaling
        )
        return seen.view(1, 1, heads, values.shape[2])
    seen = scaled_dot_product_attention(
        query,
        seen_keys[None],
        seen_values[None],
        attn_mask=row.mask,
        is_causal=row.is_causal,
        scale=scaling,
        enable_gqa=heads != keys.shape[0],
    )
    return seen.transpose(1, 2)


def _slots(blocks: list[int], tokens: int, *, device: torch.device) -> slice | torch.Tensor:
    used = blocks[: -(-tokens // BLOCK_TOKENS)]
    if used[-1] - used[0] == len(used) - 1 and used == list(range(used[0], used[-1] + 1)):
        first = used[0] * BLOCK_TOKENS
        return slice(first, first + tokens)
    return torch.tensor(slots_between(blocks, 0, tokens), device=device)
