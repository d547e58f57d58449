"""The weights of linear layers, laid out once at loading as oneDNN's kernels for this CPU read them.

torch would lay them out anew in every product, or leave the product to a library that knows this
CPU less well. What leaves here computes what came in: each layer is compared before it is replaced.
"""

from typing import Any, Final

import structlog
import torch
from torch import nn

_PROBE_ROWS: Final = 4
# Rows for which the layout is chosen; measured to serve one row and hundreds as well.
_LAYOUT_ROWS: Final = 16
# Relative to the largest number of the product: the order of additions may differ, no more.
_TOLERANCE: Final = 1e-4
_log = structlog.get_logger()


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN reads; it is not for training."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self.bias = plain.bias
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
            plain.weight.detach(), _LAYOUT_ROWS
        )

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it was, made anew each time; for models that look at it themselves."""
        return self._packed.to_dense()

    @property
    def packed_bytes(self) -> int:
        """What the packed weight takes."""
        return self._packed.numel() * self._packed.element_size()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")


def pack_weights(model: nn.Module) -> int:
    """Replace every plain linear layer that can be; how many were."""
    if not torch.backends.mkldnn.is_available():
        return 0
    packed = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if _can_be_packed(layer) and (replacement := _pack(layer)) is not None:
                setattr(parent, name, replacement)
                packed += 1
    _log.debug("engine.weights_packed", layers=packed)
    return packed


def packed_bytes(model: nn.Module) -> int:
    """What packed weights take, which are no parameters any more."""
    return sum(layer.packed_bytes for layer in model.modules() if isinstance(layer, PackedLinear))


def _can_be_packed(layer: nn.Module) -> bool:
    # A subclass may compute something else.
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and not layer._forward_hooks  # pyright: ignore[reportPrivateUsage]
        and not layer._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    )


@torch.inference_mode()
def _pack(plain: Any) -> PackedLinear | None:
    probe = torch.linspace(-1, 1, _PROBE_ROWS * plain.in_features).view(_PROBE_ROWS, -1)
    expected = plain(probe)
    try:
        packed = PackedLinear(plain)
        apart = float((packed(probe) - expected).abs().max())
    except (RuntimeError, AttributeError) as error:
        # An operator that torch does not promise to keep; without it the model is only slower.
        _log.info("engine.packing_unsupported", error=str(error).splitlines()[0])
        return None
    allowed = _TOLERANCE * max(1.0, float(expected.abs().max()))
    if not apart <= allowed:
        _log.info("engine.packing_disagrees", apart=apart, allowed=allowed)
        return None
    return packed
