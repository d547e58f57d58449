"""The guide to labels and vectors: its Python runs as it stands, against running processes."""

import re
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product
from tests.pictures import draw

pytestmark = pytest.mark.slow
GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "labels-and-vectors.md").read_text()
MODELS = """
[smollm2-135m-instruct, all-minilm-l6-v2, ticket-classifier, text-moderation, shape-classifier]
"""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder: Path = tmp_path_factory.mktemp("guide")
    with running_scripted_product(folder, f"models: {MODELS.strip()}") as running:
        book = folder / "labels-and-vectors.yaml"
        book.write_text(_blocks("yaml")[0])
        running.command("price", "publish", str(book))
        yield running


def test_every_example_of_the_guide_runs_and_is_on_the_bill(
    product: ScriptedProduct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disc.png").write_bytes(draw("disc"))
    secret = product.tenant("acme", dollars="1")
    monkeypatch.setenv("STEELYARD_URL", product.url)
    monkeypatch.setenv("STEELYARD_KEY", secret)
    scope: dict[str, Any] = {}

    for block in _blocks("python"):
        exec(compile(block, "labels-and-vectors.md", "exec"), scope)

    for name in ("client", "http"):
        scope[name].close()
    last = scope["ranks"]["usage"]["event_id"]
    assert Decimal(product.settled(last, secret)["cost"]) > 0
    lines = product.command("statement", "acme", "--json")["lines"]
    meters = {(line["model"], line["meter"]) for line in lines}
    assert ("ticket-classifier", "item") in meters
    assert ("shape-classifier", "item") in meters
    assert ("text-moderation", "call") in meters
    assert ("all-minilm-l6-v2", "input.text") in meters
    assert ("smollm2-135m-instruct", "output.text") in meters
