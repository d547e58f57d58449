"""Several upstreams as real processes: what fails, what answers instead, and what is on the bill."""

import asyncio
import signal
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.product import wait_until
from tests.e2e.routed_product import RoutedProduct, read_streams, running_routed_product

pytestmark = pytest.mark.slow
ASKED: Any = [{"role": "user", "content": "say it"}]
PLAIN = {"first": "models: [there]\nanswers: [{words: [from, ' first']}]\nhas_facts: false\n",
         "second": "models: [there]\nanswers: [{words: [from, ' second']}]\nhas_facts: false\n",
         "other": "models: [big]\nanswers: [{words: [from, ' other', ' model']}]\n"}  # fmt: skip
CONFIGURATION = """
[upstreams.first]
kind = "openai-compatible"
url = "first_URL"
key_env = "KEY_OF_FIRST"

[upstreams.second]
kind = "vllm"
url = "second_URL"

[upstreams.other]
kind = "engine"
url = "other_URL"

[models.small]
aliases = ["gpt-3.5-turbo"]
context_tokens = 8192
fallbacks = ["big"]
deployments = [
  { upstream = "first", model = "there", weight = 1000 },
  { upstream = "second", model = "there" },
]

[models.big]
deployments = [{ upstream = "other" }]

[routing]
retries = { backoff_first_s = 0.01 }
breaker = { failures = 3, open_s = 0.5 }
health = { every_s = 0.2 }
"""
TWO_WORDS = Decimal(7 * 2 + 2 * 10) / 10**6
THREE_WORDS = Decimal(7 * 2 + 3 * 10) / 10**6


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[RoutedProduct]:
    folder = tmp_path_factory.mktemp("routed")
    with running_routed_product(
        folder, CONFIGURATION, PLAIN, KEY_OF_FIRST="sk-never-told"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def secret(product: RoutedProduct) -> str:
    return product.tenant("acme", dollars="10", key_options=("--requests-per-minute", "100000"))


def _say(client: openai.OpenAI, model: str = "gpt-3.5-turbo") -> tuple[str, Any]:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=ASKED, max_tokens=20
    )
    text = raw.parse().choices[0].message.content
    assert text is not None
    return text, raw.headers


def test_an_upstream_gets_its_own_key_and_its_own_name_of_the_model(
    product: RoutedProduct, secret: str
) -> None:
    text, headers = _say(product.openai(secret))

    asked = product.asked("first")[-1]
    event = product.settled(headers["x-steelyard-event-id"], secret)
    assert text == "from first"
    assert asked["headers"]["authorization"] == "Bearer sk-never-told"
    assert asked["body"]["model"] == "there"
    assert (event["model_requested"], event["model_served"]) == ("gpt-3.5-turbo", "small")
    assert event["count_source"] == "provider"
    assert "sk-never-told" not in (product.folder / "gateway.log").read_text()


def test_an_alias_is_listed_with_the_model_that_it_means(
    product: RoutedProduct, secret: str
) -> None:
    client = product.openai(secret)

    listed = {model.id for model in client.models.list().data}
    alias = client.models.retrieve("gpt-3.5-turbo")

    assert listed == {"small", "big", "gpt-3.5-turbo"}
    assert (alias.model_extra or {})["root"] == "small"


def test_a_dead_server_is_replaced_by_the_next_and_then_by_another_model(
    product: RoutedProduct, secret: str
) -> None:
    client = product.openai(secret)
    product.kill("first")

    answers = [_say(client) for _ in range(5)]
    product.kill("second")
    fallen, headers = _say(client)

    assert {text for text, _ in answers} == {"from second"}
    assert fallen == "from other model"
    assert headers["x-steelyard-model"] == "big"
    assert Decimal(headers["x-steelyard-cost"]) == THREE_WORDS
    *failed, served = product.attempts_of(headers["x-request-id"], secret)
    assert {attempt["upstream"] for attempt in failed} <= {"first", "second"}
    assert len(failed) <= 2
    assert {Decimal(attempt["cost"]) for attempt in failed} <= {Decimal(0)}
    assert (served["model_served"], Decimal(served["cost"])) == ("big", THREE_WORDS)
    product.assert_books_are_right()
    for name in ("first", "second"):
        product.start_upstream(name)
    wait_until(lambda: _say(client)[0] == "from first", within_s=20)


def test_streams_survive_every_change_of_the_file(tmp_path: Path) -> None:
    slow = (
        "answers: [{words: [one, ' two', ' three', ' four'], word_delay_s: 0.1}]\nmodels: [there]\n"
    )
    one = CONFIGURATION.partition("[upstreams.second]")[0] + MODEL_ON.format("first")
    two = one.replace("first", "second").replace("openai-compatible", "vllm")
    files = [one, two, two.replace("vllm", "no such kind"), one, two]
    scripts = {"first": slow, "second": slow}
    settings = {"KEY_OF_FIRST": "a", "KEY_OF_SECOND": "b", "STEELYARD_REFRESH_S": "0.05"}
    with running_routed_product(
        tmp_path / "p", one.replace("FIRST", "SECOND"), scripts, **settings
    ) as product:
        secret = product.tenant("acme", dollars="10", key_options=("--requests-per-minute", "9999"))

        async def load() -> list[Any]:
            seen: list[Any] = []

            async def keep_asking() -> None:
                for _ in range(4):
                    seen.extend(await read_streams(product, secret, count=8, model="small"))

            asking = asyncio.ensure_future(keep_asking())
            for text in [*files, *files]:
                product.configure(text.replace("KEY_OF_first", "KEY_OF_FIRST"))
                await asyncio.sleep(0.2)
            await asking
            return seen

        seen = asyncio.run(load())
        product.wait_until_nothing_is_held("acme")
        first, second = product.asked("first"), product.asked("second")
        product.assert_books_are_right()
        events = {entry["event"] for entry in product.log("gateway")}

    assert len(seen) == 32
    assert {(each.text, each.is_whole, each.error) for each in seen} == {
        ("one two three four", True, None)
    }
    assert first
    assert second
    assert len(first) + len(second) == 32
    assert {"configuration.loaded", "configuration.refused"} <= events


def test_a_signal_makes_the_gateway_look_at_its_file_at_once(tmp_path: Path) -> None:
    one = CONFIGURATION.partition("[upstreams.second]")[0] + MODEL_ON.format("first")
    quick = "models: [there]\n"
    # It looks by itself too late for this test.
    settings = {"KEY_OF_FIRST": "a", "STEELYARD_REFRESH_S": "60"}
    with running_routed_product(tmp_path / "p", one, {"first": quick}, **settings) as product:

        def listed() -> str:
            return httpx.get(f"{product.url}/health").text

        assert "renamed" not in listed()
        product.configure(one.replace("[models.small]", "[models.renamed]"))
        assert "renamed" not in listed()

        product.processes["gateway"].send_signal(signal.SIGHUP)

        wait_until(lambda: "renamed" in listed(), within_s=40)


MODEL_ON = """
[models.small]
context_tokens = 8192
deployments = [{{ upstream = "{}", model = "there" }}]
"""
