"""How many tokens of keys and values fit: what was asked for, or a share of the free memory."""

from typing import Final

import psutil
import torch

from steelyard.engine.block_pool import BLOCK_TOKENS
from steelyard.engine.paged_memory import LayerShape
from steelyard.errors import Failure

# The rest is for weights that load later, activations, and whoever else lives here.
_SHARE_OF_FREE_MEMORY: Final = 0.5
_BLOCKS_MIN: Final = 2


class KvMemoryTooSmall(Failure):
    """There is not enough memory for the keys and values of one short answer."""

    code = "kv_memory_too_small"


def bytes_per_token(shapes: list[LayerShape], dtype: torch.dtype) -> int:
    """What one token takes in all layers."""
    return sum(shape.numbers for shape in shapes) * dtype.itemsize


def count_blocks(
    *,
    max_batch_tokens: int | None,
    max_batch_size: int,
    max_model_len: int,
    token_bytes: int,
    free_bytes: int,
) -> int:
    """Blocks for every row at full length, or fewer: what was asked for, or what there is."""
    tokens = max_batch_size * max_model_len
    if max_batch_tokens is not None:
        tokens = min(tokens, max_batch_tokens)
    else:
        tokens = min(tokens, int(free_bytes * _SHARE_OF_FREE_MEMORY) // max(token_bytes, 1))
    blocks = -(-tokens // BLOCK_TOKENS) if tokens >= max_model_len else tokens // BLOCK_TOKENS
    if blocks < _BLOCKS_MIN:
        raise KvMemoryTooSmall(
            f"{tokens} tokens of keys and values fit, {_BLOCKS_MIN * BLOCK_TOKENS} are needed; "
            "give more memory, or a larger --max-batch-tokens"
        )
    return blocks


def free_memory(device: torch.device) -> int:
    """Bytes that the device can still give."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
