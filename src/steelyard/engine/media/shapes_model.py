"""The shapes model: a diffusion transformer with a million weights that draws simple shapes.

A toy, and named so: it knows some twenty words. But its steps are real, so it shows what a picture
costs. `shapes_training` makes its weights.
"""

# diffusers' mixins are typed in part only.
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false

from __future__ import annotations

import math
import re
from typing import Final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

SIZES: Final = ("small", "large")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES: Final = ("disc", "square", "triangle", "star")
BACKGROUNDS: Final = ("white", "black")
WORDS: Final = (*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS)
# Other names of what it knows.
SYNONYMS: Final = {"circle": "disc", "ball": "disc", "big": "large", "little": "small"}
# What all other words are to it.
OTHER_WORD: Final = len(WORDS)
PATCH: Final = 4
CHANNELS: Final = 3
_WORD: Final = re.compile(r"[a-z]+|[^\sa-z]+")


def read_words(prompt: str) -> list[int]:
    """The ids of a prompt's words: these are its tokens."""
    words = (SYNONYMS.get(word, word) for word in _WORD.findall(prompt.lower()))
    return [WORDS.index(word) if word in WORDS else OTHER_WORD for word in words]


def bag_of(ids: list[int]) -> Tensor:
    """Which of the words it knows are there; a drawing depends on nothing else."""
    bag = torch.zeros(len(WORDS))
    bag[[index for index in ids if index < OTHER_WORD]] = 1.0
    return bag


class _Block(nn.Module):
    """Attention and a feed-forward, both steered by words and time (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.steer = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.steer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.steer(condition)[:, None].chunk(6, -1)
        x = x + gate * self._attend(self.attention_norm(x) * (1 + scale) + shift)
        return x + gate_2 * self.feed_forward(self.forward_norm(x) * (1 + scale_2) + shift_2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        parts = self.query_key_value(x).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).reshape(batch, count, width))


class ShapesTransformer(ModelMixin, ConfigMixin):
    """Says what picture a noisy one was, given the words and how noisy it is."""

    @register_to_config
    def __init__(self, width: int = 128, depth: int = 5, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(CHANNELS * PATCH * PATCH, width)
        self.place = nn.Linear(16, width)
        self.words = nn.Linear(len(WORDS), width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.steer = nn.Linear(width, 2 * width)
        self.unembed = nn.Linear(width, CHANNELS * PATCH * PATCH)

    def forward(self, noisy: Tensor, noise_share: Tensor, bags: Tensor) -> Tensor:
        batch, channels, height, width = noisy.shape
        rows, columns = height // PATCH, width // PATCH
        cut = noisy.view(batch, channels, rows, PATCH, columns, PATCH)
        x = self.embed(cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1))
        x = x + self.place(_places(rows, columns).to(x))
        condition = self.words(bags) + self.time(_waves(noise_share, 16, most=200.0))
        condition = nn.functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.steer(condition)[:, None].chunk(2, -1)
        x = self.unembed(self.norm(x) * (1 + scale) + shift)
        x = x.view(batch, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(batch, channels, height, width)


def _waves(values: Tensor, count: int, *, most: float) -> Tensor:
    rates = torch.exp(torch.linspace(0, math.log(most), count, device=values.device))
    angles = values[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _places(rows: int, columns: int) -> Tensor:
    """Where each patch is, as shares of the picture: the same in pictures of any size."""
    y = _waves((torch.arange(rows) + 0.5) / rows * math.pi, 4, most=8.0)
    x = _waves((torch.arange(columns) + 0.5) / columns * math.pi, 4, most=8.0)
    both = [y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)]
    return torch.cat(both, -1).reshape(rows * columns, 16)


def mix_noise(pictures: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Flow matching: the straight line from a picture to noise."""
    share = share[:, None, None, None]
    return (1 - share) * pictures + share * noise
