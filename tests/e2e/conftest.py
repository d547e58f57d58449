"""A product for each file of tests, on a tiny random model."""

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.product import Product, running_product
from tests.engine.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def product(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Product]:
    data_dir = tmp_path_factory.mktemp("product")
    with running_product(data_dir, STEELYARD_MODEL=str(tiny_model)) as running:
        yield running
