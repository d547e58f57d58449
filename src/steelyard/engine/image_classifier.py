"""Models that say what is in a picture: image classifiers of transformers', on pixels."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForImageClassification

from steelyard.engine.encoder import Classes
from steelyard.engine.model_loading import LoadingChoices, check_folder, choose_device, read_model
from steelyard.engine.refusals import InvalidRequest
from steelyard.engine.tokenless_facts import tokenless_facts

PATHS: Final = ("/v1/classifications",)
PREPROCESSOR: Final = "preprocessor_config.json"
# What a caller's gateway has refused already; whoever asks the engine itself is told here.
SIDE_MAX: Final = 4096
DATA_URL: Final = "data:image/"
_SIDE: Final = 224
_DAMAGE: Final = (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError)


class ImageClassifier:
    """A model of this kind in memory, with how pictures are made ready for it."""

    def __init__(self, model: Any, *, name: str, preparation: dict[str, Any]) -> None:
        self.name = name
        self.max_model_len = 1
        self.facts = tokenless_facts(PATHS)
        self._model = model
        size: dict[str, int] = preparation.get("size") or {}
        self._size = size.get("width", _SIDE), size.get("height", _SIDE)
        self._mean = torch.tensor(preparation.get("image_mean") or [0.5] * 3).view(3, 1, 1)
        self._std = torch.tensor(preparation.get("image_std") or [0.5] * 3).view(3, 1, 1)

    @property
    def classes(self) -> Classes:
        config = self._model.config
        labels = tuple(config.id2label[index] for index in range(config.num_labels))
        return Classes(labels, config.problem_type == "multi_label_classification")

    @torch.inference_mode()
    def classify(self, urls: Sequence[str]) -> list[list[float]]:
        """For each picture the score of each label."""
        pixels = torch.stack([self._prepare(url, index) for index, url in enumerate(urls)])
        logits = self._model(pixel_values=pixels.to(self._model.device)).logits.float()
        are_independent = self.classes.are_independent
        scores = torch.sigmoid(logits) if are_independent else torch.softmax(logits, dim=-1)
        return scores.tolist()

    def _prepare(self, url: str, index: int) -> torch.Tensor:
        picture = _open(url, index).convert("RGB").resize(self._size)
        raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        width, height = self._size
        scaled = raw.view(height, width, 3).permute(2, 0, 1).float() / 255
        return (scaled - self._mean) / self._std


def _open(url: str, index: int) -> Image.Image:
    refused = InvalidRequest(f"picture {index} is no PNG or JPEG in a data: URL", param="input")
    head, _, body = url.partition(";base64,")
    if not head.startswith(DATA_URL) or not body:
        raise refused
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(body)), formats=("PNG", "JPEG"))
        if max(picture.size) > SIDE_MAX:
            raise InvalidRequest(f"picture {index} has more than {SIDE_MAX} pixels", param="input")
        picture.load()
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise refused from error
    return picture


def load_image_classifier(folder: Path, *, name: str, choices: LoadingChoices) -> ImageClassifier:
    """Bring the model into memory, or say which file is at fault."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check_folder(folder)
    device, dtype = choose_device(choices)
    loader: Any = AutoModelForImageClassification
    load = partial(loader.from_pretrained, folder, dtype=dtype, local_files_only=True)
    model = read_model(folder, load)
    told = folder / PREPROCESSOR
    preparation: dict[str, Any] = json.loads(told.read_bytes()) if told.is_file() else {}
    return ImageClassifier(model.to(device).eval(), name=name, preparation=preparation)
