"""A gateway that is told to stop while streams run: they end whole, or are cut short and charged for
what was handed over; and it takes nothing new."""

import asyncio
import signal
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.product import wait_until
from tests.e2e.routed_product import (
    RoutedProduct,
    StreamSeen,
    read_stream,
    read_streams,
    running_routed_product,
)

pytestmark = pytest.mark.slow
SLOW = "models: [small]\nanswers: [{words: [a, b, c, d, e, f, g, h], word_delay_s: 0.25}]\n"
CONFIGURATION = """
[upstreams.only]
kind = "engine"
url = "only_URL"
"""
WHOLE = Decimal(7 * 2 + 8 * 10) / 10**6
STREAMS = 12


@pytest.fixture
def product(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[RoutedProduct]:
    settings: dict[str, str] = getattr(request, "param", {})
    folder = tmp_path / "product"
    with running_routed_product(folder, CONFIGURATION, {"only": SLOW}, **settings) as running:
        yield running


def _stop_during_streams(
    product: RoutedProduct, secret: str
) -> tuple[list[StreamSeen], dict[str, Any], StreamSeen]:
    """SIGTERM once all streams run; what they got, what health said then, and a late request."""

    async def run() -> tuple[list[StreamSeen], dict[str, Any], StreamSeen]:
        running = asyncio.ensure_future(read_streams(product, secret, count=STREAMS, model="small"))
        async with httpx.AsyncClient(timeout=10) as client:
            # Kept open: an idle connection may be closed once the gateway drains.
            while await _open_requests(client, product) < STREAMS:
                await asyncio.sleep(0.01)
            product.processes["gateway"].send_signal(signal.SIGTERM)
            health = (await client.get(f"{product.url}/health")).json()
            while health["status"] != "draining":
                health = (await client.get(f"{product.url}/health")).json()
        late = await read_stream(product, secret, model="small")
        return await running, health, late

    return asyncio.run(run())


async def _open_requests(client: httpx.AsyncClient, product: RoutedProduct) -> int:
    health = (await client.get(f"{product.url}/health")).json()
    return sum(each["open_requests"] for each in health["models"].get("small", []))


DELAYED = {"STEELYARD_DRAIN_DELAY_S": "1.5"}
SHORT = {"STEELYARD_DRAIN_DELAY_S": "0.2", "STEELYARD_DRAIN_S": "1"}


@pytest.mark.parametrize("product", [DELAYED], indirect=True)
def test_streams_end_whole_and_a_late_request_is_still_taken_while_health_says_no(
    product: RoutedProduct,
) -> None:
    secret = product.tenant("acme", dollars="10")

    streams, health, late = _stop_during_streams(product, secret)

    assert health["status"] == "draining"
    assert {(each.text, each.is_whole) for each in [*streams, late]} == {("abcdefgh", True)}
    assert {Decimal(each.cost or 0) for each in streams} == {WHOLE}
    assert product.processes["gateway"].wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{product.url}/health")
    wait_until(lambda: product.command("balance", "acme")["held"] == "0")
    assert Decimal(product.command("balance", "acme")["total"]) == 10 - WHOLE * (STREAMS + 1)
    product.assert_books_are_right()


@pytest.mark.parametrize("product", [SHORT], indirect=True)
def test_what_takes_longer_than_the_drain_is_cut_short_and_charged_for_what_was_handed_over(
    product: RoutedProduct,
) -> None:
    secret = product.tenant("acme", dollars="10")

    streams, _, _ = _stop_during_streams(product, secret)

    assert product.processes["gateway"].wait(timeout=60) == 0
    assert not any(each.is_whole for each in streams)
    wait_until(lambda: product.command("balance", "acme")["held"] == "0")
    product.start_gateway()
    for each in streams:
        assert each.event_id is not None
        event = product.settled(each.event_id, secret)
        assert event["end_cause"] == "gateway_stopped"
        # The last word may have been on its way when the connection was cut.
        handed_over = int(event["meters"]["output.text"])
        assert handed_over - len(each.text) in {0, 1}
        assert Decimal(event["cost"]) == Decimal(7 * 2 + handed_over * 10) / 10**6
    product.assert_books_are_right()
