"""Two ways to compute a step: all rows as one line over paged memory, or row by row.

The first serves models whose every layer is plain full attention and who take part in
transformers' attention interface; it is compared with the model's own forward before it is
trusted. The second is slower, and right for every kind of cache.
"""

from collections.abc import Sequence as SequenceOf
from typing import Final, Protocol

import structlog
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steelyard.engine.block_pool import BLOCK_TOKENS
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.paged_memory import (
    PAGED,
    LayerShape,
    PagedMemory,
    Paging,
    StepLayout,
    slots_between,
    view_row,
)
from steelyard.engine.scheduler import Scheduled, StepRow

_PROBE_TOKENS: Final = 2 * BLOCK_TOKENS + 5
# Relative to the largest logit. A wrong mask or position is off by far more.
_PROBE_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_log = structlog.get_logger()


class Runner(Protocol):
    """Feeds the rows of a step to the model."""

    def run(self, rows: SequenceOf[StepRow[Scheduled]]) -> torch.Tensor:
        """Feed them; the logits after the last token of each row that draws, in their order."""
        ...

    def forget(self, sequence: Scheduled) -> None:
        """Let go of what is kept for a sequence besides its blocks."""
        ...


class PagedRunner:
    """All rows in one pass of the model."""

    def __init__(self, model: LoadedModel, memory: PagedMemory) -> None:
        self._model = model
        self._memory = memory

    def run(self, rows: SequenceOf[StepRow[Scheduled]]) -> torch.Tensor:
        device = self._model.device
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        drawing: list[int] = []
        views = []
        for row in rows:
            sequence = row.sequence
            views.append(
                view_row(
                    sequence.blocks,
                    begin=row.begin,
                    end=row.end,
                    at=len(token_ids),
                    device=device,
                )
            )
            token_ids += sequence.context_ids[row.begin : row.end]
            positions += range(row.begin, row.end)
            slots += slots_between(sequence.blocks, row.begin, row.end)
            if row.is_drawing:
                drawing.append(len(token_ids) - 1)
        return self._model.line_logits(
            torch.tensor([token_ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            keep=torch.tensor(drawing, dtype=torch.long, device=device),
            step_layout=StepLayout(self._memory, torch.tensor(slots, device=device), views),
        )

    def forget(self, sequence: Scheduled) -> None:
        pass


class SeparateRunner:
    """Each row by itself, with a cache of its own."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._caches: dict[int, DynamicCache] = {}

    def run(self, rows: SequenceOf[StepRow[Scheduled]]) -> torch.Tensor:
        logits = [(row, self._run_row(row)) for row in rows]
        drawn = [found for row, found in logits if row.is_drawing]
        return torch.cat(drawn) if drawn else torch.empty(0)

    def forget(self, sequence: Scheduled) -> None:
        self._caches.pop(id(sequence), None)

    def _run_row(self, row: StepRow[Scheduled]) -> torch.Tensor:
        device, key = self._model.device, id(row.sequence)
        if row.begin == 0:
            self._caches[key] = self._model.new_cache()
        return self._model.next_logits(
            torch.tensor([row.sequence.context_ids[row.begin : row.end]], device=device),
            cache=self._caches[key],
            position_ids=torch.arange(row.begin, row.end, device=device).unsqueeze(0),
        )


def is_plain_attention(cache: DynamicCache) -> bool:
    """Whether every layer keeps all keys and values of all tokens, and nothing else."""
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


@torch.inference_mode()
def paged_shapes(model: LoadedModel) -> list[LayerShape] | None:
    """The layers' shapes if this model can be run over paged memory, found by trying once."""
    if model.paging is None:
        model.paging = Paging(_try_paging(model) if model.can_be_paged else None)
    return model.paging.shapes


def _try_paging(model: LoadedModel) -> list[LayerShape] | None:
    model.use_attention(None)
    probe = _probe_ids(model)
    cache = model.new_cache()
    positions = torch.arange(len(probe), device=model.device).unsqueeze(0)
    expected = model.next_logits(
        torch.tensor([probe], device=model.device), cache=cache, position_ids=positions
    )
    if not is_plain_attention(cache):
        return None
    shapes = [_shape_of(layer) for layer in cache.layers]
    return shapes if _agrees(model, shapes, probe, expected[0]) else None


def _agrees(
    model: LoadedModel, shapes: list[LayerShape], probe: list[int], expected: torch.Tensor
) -> bool:
    memory = PagedMemory(shapes, blocks=8, dtype=model.weights_dtype, device=model.device)
    runner = PagedRunner(model, memory)
    whole, parted = _Probe(probe, blocks=[4, 5, 6]), _Probe(probe, blocks=[3, 0, 2])
    cut = len(probe) - BLOCK_TOKENS
    model.use_attention(PAGED)
    try:
        runner.run([StepRow(parted, 0, cut, False)])
        rows = [StepRow(parted, cut, len(probe) - 1, False), StepRow(whole, 0, len(probe), True)]
        first = runner.run(rows)
        second = runner.run([StepRow(parted, len(probe) - 1, len(probe), True)])
    except Exception as error:
        # Whatever goes wrong inside a model's own code here, it can still be run row by row.
        _log.info("engine.paging_unsupported", model=model.name, error=repr(error))
        model.use_attention(None)
        return False
    apart = max(float((found - expected).abs().max()) for found in (first[0], second[0]))
    allowed = _PROBE_TOLERANCE[model.weights_dtype] * max(1.0, float(expected.abs().max()))
    if not apart <= allowed:
        _log.info("engine.paging_disagrees", model=model.name, apart=apart, allowed=allowed)
        model.use_attention(None)
        return False
    return True


class _Probe:
    """A sequence that nobody asked for."""

    fairness_key = ""
    cache_root = b""

    def __init__(self, context_ids: list[int], *, blocks: list[int]) -> None:
        self.context_ids = context_ids
        self.blocks = blocks
        self.computed = 0
        self.cached_tokens: int | None = None
        self.digests: list[bytes] = []


def _probe_ids(model: LoadedModel) -> list[int]:
    # Spread over the vocabulary, and never the same token twice in a row.
    return [(7919 * (i + 1)) % model.vocabulary_size for i in range(_PROBE_TOKENS)]


def _shape_of(layer: object) -> LayerShape:
    assert type(layer) is DynamicLayer, layer
    keys, values = layer.keys, layer.values
    assert keys is not None, "a layer that was fed has keys"
    assert values is not None, "a layer that was fed has values"
    return LayerShape(keys.shape[1], keys.shape[-1], values.shape[-1])
