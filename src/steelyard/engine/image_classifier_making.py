"""Makes the small image classifier that ships as a recipe: it tells the shapes that toy-shapes draws.

`python -m steelyard.engine.image_classifier_making FOLDER` makes it by hand, in some twenty seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from steelyard.engine.media.shapes_model import BACKGROUNDS, COLOURS, SHAPES, SIZES
from steelyard.engine.media.shapes_training import draw

SIDE: Final = 32
_STEPS: Final = 250
_PICTURES_A_STEP: Final = 32
_LEARNING_RATE: Final = 4e-3
_SEED: Final = 20261126
_PREPARATION: Final[dict[str, Any]] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": SIDE, "width": SIDE},
}


def make_image_classifier(folder: Path) -> None:
    """Train it into a folder: the same weights every time on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = _train()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPARATION))


def _train() -> ResNetForImageClassification:
    generator = torch.Generator().manual_seed(_SEED)
    model = ResNetForImageClassification(_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LEARNING_RATE, total_steps=_STEPS
    )
    kinds = torch.tensor([len(SIZES), len(COLOURS), len(SHAPES), len(BACKGROUNDS)])
    for _ in range(_STEPS):
        choices = (torch.rand(_PICTURES_A_STEP, 4, generator=generator) * kinds).long()
        pictures, _bags = draw(choices, SIDE, generator)
        output: Any = model(pixel_values=pictures, labels=choices[:, 2])
        output.loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _config() -> ResNetConfig:
    config = ResNetConfig(
        num_channels=3,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
    )
    config.id2label = dict(enumerate(SHAPES))
    config.label2id = {label: index for index, label in enumerate(SHAPES)}
    config.problem_type = "single_label_classification"
    return config


if __name__ == "__main__":
    make_image_classifier(Path(sys.argv[1]))
