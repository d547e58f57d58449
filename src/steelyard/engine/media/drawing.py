"""Image generation: a text-to-image pipeline of diffusers, step by step.

What is counted: the tokens of the prompt, the steps that were taken, the size, and the pictures.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steelyard.engine.model_source import TOY_SHAPES, ModelDamaged, ModelNotFound
from steelyard.engine.refusals import ImageTooLarge, InvalidRequest

PATHS: Final = ("/v1/images/generations",)
PIXELS_MAX: Final = 1024 * 1024
SIDE_MULTIPLE: Final = 8
STEPS_DEFAULT: Final = 20


@dataclass(frozen=True, slots=True)
class PictureWish:
    """What was asked; the size is the model's own where nothing is said."""

    prompt: str
    count: int
    steps: int
    size: tuple[int, int] | None
    seed: int
    guidance: float | None
    pixels_max: int | None = None


@dataclass(frozen=True, slots=True)
class DrawingStep:
    """A step that was taken; with the last one come the pictures, as PNG."""

    step: int
    pictures: tuple[bytes, ...] = ()


class ImageModel:
    """A pipeline in memory."""

    def __init__(self, pipeline: Any, *, name: str, count_tokens: Callable[[str], int]) -> None:
        self.name = name
        self.max_model_len = 4096
        self.count_tokens = count_tokens
        self._pipeline = pipeline
        self._signature = inspect.signature(pipeline.__call__)
        definition = f"{type(pipeline).__name__}/{name}".encode()
        self.facts: dict[str, Any] = {
            "tokenizer_sha256": hashlib.sha256(definition).hexdigest(),
            "byte_level": True,
            "bytes_per_token_max": 1,
            "template_tokens_base": 0,
            "template_tokens_per_message": 0,
            # A text encoder's own marks of beginning and end.
            "special_tokens_added": 2,
            "has_chat_template": False,
            "paths": PATHS,
        }

    def size_of(self, wish: PictureWish) -> tuple[int, int]:
        """Width and height; refuses what is too much for one machine."""
        width, height = wish.size or self._own_size()
        if width % SIDE_MULTIPLE or height % SIDE_MULTIPLE or not width or not height:
            message = f"width and height are multiples of {SIDE_MULTIPLE}, got {width}x{height}"
            raise InvalidRequest(message, param="size")
        most = min(PIXELS_MAX, wish.pixels_max or PIXELS_MAX)
        if width * height * wish.count > most:
            message = f"all pictures together may have {most} pixels"
            raise ImageTooLarge(message, param="size")
        return width, height

    def draw(self, wish: PictureWish, tell: Callable[[DrawingStep], None]) -> None:
        """Take the steps; telling one may end it."""
        import torch

        width, height = self.size_of(wish)
        step_count = 0

        def on_step_end(
            _pipeline: Any, step: int, _timestep: Any, kept: dict[str, Any]
        ) -> dict[str, Any]:
            nonlocal step_count
            step_count = step + 1
            if step_count < wish.steps:
                tell(DrawingStep(step_count))
            return kept

        asked: dict[str, Any] = {
            "prompt": wish.prompt,
            "width": width,
            "height": height,
            "num_inference_steps": wish.steps,
            "num_images_per_prompt": wish.count,
            "generator": torch.Generator().manual_seed(wish.seed),
            "callback_on_step_end": on_step_end,
        }
        if wish.guidance is not None:
            asked["guidance_scale"] = wish.guidance
        drawn = self._pipeline(**asked)
        tell(DrawingStep(step_count, tuple(map(_write_png, drawn.images))))

    def _own_size(self) -> tuple[int, int]:
        default = self._signature.parameters["height"].default
        if isinstance(default, int):
            return default, default
        factor = getattr(self._pipeline, "vae_scale_factor", 8)
        inner = getattr(self._pipeline, "unet", None) or self._pipeline.transformer
        side = inner.config.sample_size * factor
        return side, side


def load_drawing(folder: Path, *, name: str) -> ImageModel:
    """Bring a pipeline into memory: the toy that is shipped, or a folder of diffusers."""
    try:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    except ImportError as error:
        raise ModelNotFound(
            "models that draw need diffusers; run: pip install 'steelyard[images]'"
        ) from error
    if name == TOY_SHAPES:
        from steelyard.engine.media.shapes_model import read_words
        from steelyard.engine.media.shapes_pipeline import load_shapes

        return ImageModel(load_shapes(), name=name, count_tokens=lambda text: len(read_words(text)))
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(str(folder))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelDamaged(f"diffusers cannot load {folder}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is None:
        raise ModelDamaged(f"{folder} has no tokenizer, so its prompts cannot be counted")

    def count_tokens(text: str) -> int:
        return len(tokenizer(text, truncation=True, max_length=tokenizer.model_max_length)[0].ids)

    return ImageModel(pipeline, name=name, count_tokens=count_tokens)


def _write_png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return written.getvalue()


class Drawing:
    """Implements Telling for pictures."""

    def __init__(self, wish: PictureWish, model: ImageModel, *, created: int) -> None:
        self._wish = wish
        self._width, self._height = model.size_of(wish)
        self._prompt_tokens = model.count_tokens(wish.prompt)
        self._created = created
        self._last = DrawingStep(0)

    def event(self, step: DrawingStep) -> dict[str, Any]:
        self._last = step
        return {
            "type": "image_generation.step",
            "step": step.step,
            "steps": self._wish.steps,
            "usage": self._usage(),
        }

    def last_events(self) -> list[dict[str, Any]]:
        events = [
            {
                "type": "image_generation.completed",
                "b64_json": base64.b64encode(picture).decode(),
                **self._about(),
            }
            for picture in self._last.pictures
        ]
        events[-1]["usage"] = self._usage()
        return events

    def document(self) -> dict[str, Any]:
        pictures = [{"b64_json": base64.b64encode(one).decode()} for one in self._last.pictures]
        return {**self._about(), "data": pictures, "usage": self._usage()}

    def _about(self) -> dict[str, Any]:
        size = f"{self._width}x{self._height}"
        return {"created": self._created, "output_format": "png", "size": size}

    def _usage(self) -> dict[str, Any]:
        """Pictures count when they are there, steps when they are taken."""
        return {
            "type": "image",
            "input_tokens": self._prompt_tokens,
            "images": len(self._last.pictures),
            "steps": self._last.step,
            "width": self._width,
            "height": self._height,
            "pixels": self._width * self._height * self._wish.count,
        }
