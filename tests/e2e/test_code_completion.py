"""The guide to code completion: its Python runs as it stands, with a real model that fills in."""

import re
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_before
from tests.postgres_server import free_port

pytestmark = pytest.mark.slow
GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "code-completion.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder, port = tmp_path_factory.mktemp("code"), free_port()
    words = ("engine", "--model", "toy-coder", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    with running_before(url, folder, upstream=words) as running:
        book = folder / "code-completion.yaml"
        book.write_text(_blocks("yaml")[0])
        running.command("price", "publish", str(book))
        wait_until(lambda: running.is_ready(f"{url}/health"), within_s=120)
        yield running


def test_every_example_of_the_guide_runs_and_is_reported(
    product: ScriptedProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = product.tenant("acme", dollars="1")
    monkeypatch.setenv("STEELYARD_URL", product.url)
    monkeypatch.setenv("STEELYARD_KEY", secret)
    scope: dict[str, Any] = {}

    for block in _blocks("python"):
        exec(compile(block, "code-completion.md", "exec"), scope)
    for name in ("client", "http"):
        scope[name].close()

    assert scope["answer"].choices[0].text == "urn x * 2"
    events = [scope[name].usage.event_id for name in ("suggestion", "answer")]
    costs = [Decimal(product.settled(event, secret)["cost"]) for event in events]
    (row,) = product.command("report", "suggestions", "acme", "--json")
    assert (row["suggestions"], row["shown"], row["accepted"]) == (2, 1, 1)
    assert Decimal(row["cost"]) == Decimal(row["cost_per_accepted"]) == sum(costs)


def test_a_fill_in_is_counted_as_it_is_fed(product: ScriptedProduct) -> None:
    secret = product.tenant("counting", dollars="1")
    asked = {"model": "toy-coder", "prompt": "", "suffix": "    return x + y\n"}

    quote = product.post("/v1/tokenize", secret, asked).json()
    given = asked | {"max_tokens": 8, "return_token_ids": True}
    answer = product.post("/v1/completions", secret, given).json()

    fed = answer["choices"][0].get("prompt_token_ids") or answer["prompt_token_ids"]
    assert quote["input_tokens"] == answer["usage"]["prompt_tokens"] == len(fed)
    alone = product.post("/v1/tokenize", secret, {"model": "toy-coder", "prompt": asked["suffix"]})
    assert quote["input_tokens"] == alone.json()["input_tokens"] + 3
