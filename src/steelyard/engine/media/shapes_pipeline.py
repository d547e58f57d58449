"""The pipeline around the shapes model: called as diffusers' own text-to-image pipelines are."""

# diffusers' mixins are typed in part only.
# pyright: reportUntypedBaseClass=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from torch import Tensor

from steelyard.engine.media.shapes_model import (
    CHANNELS,
    PATCH,
    ShapesTransformer,
    bag_of,
    read_words,
)

STEPS_DEFAULT: Final = 20
SIDE_DEFAULT: Final = 64
FOLDER: Final = Path(__file__).parent / "shapes"


def make_scheduler() -> Any:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


class ShapesPipeline(DiffusionPipeline):
    """Draws pictures of one shape."""

    def __init__(self, transformer: ShapesTransformer, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        *,
        height: int = SIDE_DEFAULT,
        width: int = SIDE_DEFAULT,
        num_inference_steps: int = STEPS_DEFAULT,
        guidance_scale: float = 2.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
    ) -> ImagePipelineOutput:
        assert height % PATCH == width % PATCH == 0, f"sides are multiples of {PATCH}"
        shape = (num_images_per_prompt, CHANNELS, height, width)
        noisy = torch.randn(shape, generator=generator)
        bag = bag_of(read_words(prompt))
        bags = torch.stack([bag, torch.zeros_like(bag)]).repeat_interleave(len(noisy), 0)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, timestep in enumerate(self.scheduler.timesteps):
            noisy = self._step(noisy, timestep, bags, guidance_scale)
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, timestep, {"latents": noisy})
        return ImagePipelineOutput(images=[_picture(one) for one in noisy])

    def _step(self, noisy: Tensor, timestep: Tensor, bags: Tensor, guidance: float) -> Tensor:
        share = timestep / self.scheduler.config.num_train_timesteps
        shares = torch.full((len(bags),), share.item())
        said, without = self.transformer(noisy.repeat(2, 1, 1, 1), shares, bags).chunk(2)
        clean = (without + guidance * (said - without)).clamp(-1, 1)
        return self.scheduler.step((noisy - clean) / share, timestep, noisy).prev_sample


def _picture(values: Tensor) -> Image.Image:
    pixels = ((values.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(pixels.numpy().astype(np.uint8))


def load_shapes() -> ShapesPipeline:
    """The pipeline with the weights that are shipped."""
    transformer = ShapesTransformer.from_pretrained(str(FOLDER), torch_dtype=torch.float32)
    return ShapesPipeline(transformer, make_scheduler())
