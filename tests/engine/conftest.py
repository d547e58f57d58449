"""The tiny model, in memory once and in a process once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_process import EngineProcess, start_engine_process
from tiny_model import make_tiny_model

from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.model_loading import LoadingChoices, load_model
from steelyard.engine.model_source import find_model_source

# A tiny model gains nothing from threads, and spinning ones starve the other tests.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    choices = LoadingChoices(models_dir=tiny_folder.parent)
    return load_model(find_model_source(str(tiny_folder)), choices, progress=print)


@pytest.fixture(scope="session")
def engine_process(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    log = tmp_path_factory.mktemp("log") / "requests.jsonl"
    flags = ["--request-log", str(log), "--max-batch-size", "2", "--max-waiting", "2"]
    flags += ["--body-bytes-max", "100000"]
    with start_engine_process("--model", str(tiny_folder), *flags) as process:
        yield process
