"""A folder for vocabularies, and a registry in it."""

from pathlib import Path

import pytest

from steelyard.counting.registry import TokenizerRegistry


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture
def registry(tmp_path: Path) -> TokenizerRegistry:
    return TokenizerRegistry(tmp_path / "tokenizers")
