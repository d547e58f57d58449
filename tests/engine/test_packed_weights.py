"""Packed layers compute what plain ones do, and only those are replaced of which that is seen."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from steelyard.engine.model_loading import LoadingChoices, load_model
from steelyard.engine.model_source import find_model_source
from steelyard.engine.packed_weights import PackedLinear, pack_weights, packed_bytes


class Doubled(nn.Linear):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * super().forward(rows)


def test_a_loaded_model_is_packed_and_says_what_the_weights_said(tiny_folder: Path) -> None:
    # One of its own: an engine gives the model that it serves another attention.
    choices = LoadingChoices(models_dir=tiny_folder.parent)
    tiny = load_model(find_model_source(str(tiny_folder)), choices, progress=print)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    ids = torch.tensor([[5, 17, 200, 31, 8]])

    with torch.inference_mode():
        expected = plain(ids).logits
        found = tiny._model(ids).logits

    packed = [m for m in tiny._model.modules() if isinstance(m, PackedLinear)]
    linear = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    assert len(packed) == len(linear) > 0
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert tiny.weights_bytes >= sum(weight.nbytes for weight in plain.parameters())


def test_any_number_of_rows_has_the_same_product_and_the_weight_can_be_looked_at() -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(48, 80), nn.Linear(80, 24, bias=False)]
    model = nn.Sequential(*layers)
    weights = [layer.weight.detach().clone() for layer in layers]
    rows = [torch.randn(count, 48) for count in (1, 3, 16, 77)]
    expected = [model(row).detach() for row in rows]

    packed = pack_weights(model)

    found = [model(row) for row in rows]
    assert packed == 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    looked_at = [layer.weight for layer in model.modules() if isinstance(layer, PackedLinear)]
    assert all(torch.equal(a, b) for a, b in zip(looked_at, weights, strict=True))
    assert packed_bytes(model) == 4 * (48 * 80 + 80 * 24)


def test_what_computes_something_else_or_cannot_be_compared_stays_as_it_is() -> None:
    broken = nn.Linear(8, 8)
    nn.init.constant_(broken.weight, float("nan"))
    model = nn.ModuleList([Doubled(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), broken])
    before = list(model)

    packed = pack_weights(model)

    assert packed == 0
    assert list(model) == before
