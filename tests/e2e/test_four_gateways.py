"""Four gateways that share books and limits, as real processes."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import repeat

import httpx
import pytest

from steelyard.app.stores import Stores, open_stores
from steelyard.clock import SystemClock
from steelyard.settings import read_settings
from tests.e2e.product import wait_until
from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product
from tests.postgres_server import free_port
from tests.valkey_server import running_valkey

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
answers:
  - words: [two, ' words']
"""
GATEWAYS = 4


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder = tmp_path_factory.mktemp("four")
    with (
        running_valkey() as valkey,
        running_scripted_product(
            folder,
            SCRIPT,
            STEELYARD_VALKEY_URL=valkey.url,
            STEELYARD_ANSWER_CACHE_URL=valkey.url.removesuffix("0") + "1",
            STEELYARD_VALKEY_TIMEOUT_S="10",
            STEELYARD_GATEWAY_COUNT=str(GATEWAYS),
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def urls(product: ScriptedProduct) -> Generator[list[str]]:
    urls = [product.url]
    for number in range(2, GATEWAYS + 1):
        name, port = f"gateway-{number}", str(free_port())
        product.start(name, "gateway", "--name", name, "--port", port)
        urls.append(f"http://127.0.0.1:{port}")
    for url in urls:
        wait_until(lambda url=url: product.is_ready(f"{url}/health"))
    yield urls
    for name, process in product.processes.items():
        if name.startswith("gateway-"):
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def stores(product: ScriptedProduct) -> Generator[Stores]:
    opened = open_stores(read_settings(data_dir=product.environment["STEELYARD_DATA_DIR"]))
    yield opened
    opened.database.close()


def ask(url: str, secret: str, *, max_tokens: int = 5) -> httpx.Response:
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": max_tokens,
    }
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def ask_all(urls: list[str], secret: str, *, each: int) -> list[httpx.Response]:
    """Every gateway is asked so often, all at the same time."""
    with ThreadPoolExecutor(max_workers=2 * len(urls)) as pool:
        return list(pool.map(ask, urls * each, repeat(secret)))


def test_four_processes_admit_exactly_the_limit_together(
    product: ScriptedProduct, urls: list[str]
) -> None:
    secret = product.tenant("exact", key_options=("--requests-per-minute", "25"))
    began = time.monotonic()

    answers = ask_all(urls, secret, each=12)

    assert time.monotonic() - began < 60, "too slow for one window"
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (25, 23)
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 61
            assert answer.json()["error"]["code"] == "rate_limited"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"


def test_tokens_of_four_processes_are_one_limit(product: ScriptedProduct, urls: list[str]) -> None:
    secret = product.tenant("tokens")
    product.command("limit", "set", "tokens", "--tokens-per-minute", "1000")
    wait_until(lambda: "x-ratelimit-limit-tokens" in ask(urls[0], secret).headers)

    remaining = [int(ask(url, secret).headers["x-ratelimit-remaining-tokens"]) for url in urls * 2]

    # Each finds what all before it have left, whichever gateway they asked.
    assert remaining == sorted(remaining, reverse=True)
    assert len(set(remaining)) == len(remaining)


def test_four_processes_make_the_same_answer_once(
    product: ScriptedProduct, urls: list[str]
) -> None:
    options = ("--cache", "3600", "--requests-per-minute", "1000")
    secret = product.tenant("cached", key_options=options)

    answers = ask_all(urls, secret, each=3)

    said = [answer.headers["x-steelyard-cache"] for answer in answers]
    assert {answer.status_code for answer in answers} == {200}
    assert (said.count("miss"), said.count("hit")) == (1, 11)


def test_a_revoked_key_is_dead_in_every_process_within_a_second(
    product: ScriptedProduct, urls: list[str], stores: Stores
) -> None:
    secret = product.tenant("revoked", key_options=("--requests-per-minute", "100000"))
    assert [ask(url, secret).status_code for url in urls] == [200] * GATEWAYS
    key = stores.access.find_key("revoked/it/key")
    stores.access.revoke_key(key.id, at=SystemClock().now())
    before = time.monotonic()

    def dead_after_s(url: str) -> float:
        headers = {"Authorization": f"Bearer {secret}"}
        while httpx.get(f"{url}/v1/balance", headers=headers).status_code != 401:
            time.sleep(0.01)
        return time.monotonic() - before

    with ThreadPoolExecutor(max_workers=GATEWAYS) as pool:
        took_s = list(pool.map(dead_after_s, urls))

    print("revoked within", [round(each, 3) for each in took_s])
    assert max(took_s) < 1.0


def test_the_secrets_of_a_rotated_key_work_in_every_process_until_they_end(
    product: ScriptedProduct, urls: list[str]
) -> None:
    first = product.tenant("rotated", key_options=("--requests-per-minute", "100000"))
    until = SystemClock().now() + timedelta(hours=1)

    second = product.command("key", "rotate", "rotated/it/key", "--old-until", until.isoformat())
    both = [ask(url, each).status_code for url in urls for each in (first, second["secret"])]
    third = product.command("key", "rotate", "rotated/it/key", "--now")

    secrets = (first, second["secret"], third["secret"])
    wait_until(lambda: all(ask(url, secrets[1]).status_code == 401 for url in urls))
    after = [ask(url, each).status_code for url in urls for each in secrets]
    assert both == [200] * 2 * GATEWAYS
    assert after == [200, 401, 200] * GATEWAYS
    assert ask(urls[0], secrets[1]).json()["error"]["code"] == "key_expired"
