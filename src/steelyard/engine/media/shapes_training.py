"""Makes the weights of the shapes model: `python -m steelyard.engine.media.shapes_training FOLDER`.

It draws its own pictures, so it needs no data. The weights that are shipped came from this, on one
core, in some minutes; the same seed gives the same pictures to learn from.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from steelyard.engine.media.shapes_model import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    WORDS,
    ShapesTransformer,
    mix_noise,
)

RGB: Final = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.15, 0.30, 0.90),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.80),
    "orange": (0.95, 0.55, 0.10),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
}
SIDES: Final = (32, 32, 32, 24, 40)
BATCH: Final = 48
FORGOTTEN_SHARE: Final = 0.1
EMA: Final = 0.99


def draw(choices: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of these kinds, from -1 to 1, and their bags of words."""
    count = len(choices)
    size, colour, shape, back = choices.unbind(1)
    centre = 0.5 + 0.16 * (torch.rand(count, 2, generator=generator) - 0.5)
    radius = torch.where(size == 0, 0.17, 0.33) + 0.03 * torch.rand(count, generator=generator)
    grid = (torch.arange(side) + 0.5) / side
    y = (grid[None, :, None] - centre[:, 0, None, None]) / radius[:, None, None]
    x = (grid[None, None, :] - centre[:, 1, None, None]) / radius[:, None, None]
    inside = torch.stack([_disc(x, y), _square(x, y), _triangle(x, y), _star(x, y)], 1)
    depth = inside[torch.arange(count), shape] * radius[:, None, None] * side
    # An edge as wide as a pixel.
    cover = torch.clamp(depth + 0.5, 0, 1)[:, None]
    palette = torch.tensor([RGB[name] for name in COLOURS])
    backs = torch.tensor([RGB[name] for name in BACKGROUNDS])
    front, ground = palette[colour][:, :, None, None], backs[back][:, :, None, None]
    bags = torch.zeros(count, len(WORDS))
    starts = (0, len(SIZES), len(SIZES) + len(COLOURS), len(WORDS) - len(BACKGROUNDS))
    for column, start in enumerate(starts):
        bags[torch.arange(count), start + choices[:, column]] = 1.0
    return 2 * (cover * front + (1 - cover) * ground) - 1, bags


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return 1 - (x * x + y * y).sqrt()


def _square(x: Tensor, y: Tensor) -> Tensor:
    return 0.85 - torch.maximum(x.abs(), y.abs())


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(0.5 - y, 0.5 + y * 0.5 - x.abs() * math.sqrt(3) / 2)


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.atan2(x, -y)
    fifth = 2 * math.pi / 5
    turned = (angle + fifth / 2).remainder(fifth) - fifth / 2
    return 0.62 - (x * x + y * y).sqrt() * (0.62 + 0.75 * turned.abs() / (fifth / 2) * 0.62)


def train(steps: int, *, seed: int, say: bool = True) -> ShapesTransformer:
    """A trained model: its weights averaged over the last steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ShapesTransformer()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    kinds = torch.tensor([len(SIZES), len(COLOURS), len(SHAPES), len(BACKGROUNDS)])
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = 2e-3 * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-5
        side = SIDES[step % len(SIDES)]
        choices = (torch.rand(BATCH, 4, generator=generator) * kinds).long()
        pictures, bags = draw(choices, side, generator)
        bags *= torch.rand(BATCH, 1, generator=generator) >= FORGOTTEN_SHARE
        share = torch.sigmoid(torch.randn(BATCH, generator=generator) * 1.2 + 0.4)
        noise = torch.randn(pictures.shape, generator=generator)
        said = model(mix_noise(pictures, noise, share), share, bags)
        loss = ((said - pictures) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - min(EMA, step / (step + 10)))
        if say and step % 25 == 0:
            sys.stderr.write(f"step {step} of {steps}: loss {loss.item():.4f}\n")
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    # Half precision is enough for what is kept; drawing computes in single.
    train(chosen.steps, seed=chosen.seed).half().save_pretrained(str(chosen.folder))


if __name__ == "__main__":
    main()
