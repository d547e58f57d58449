"""Engine time: reported with every answer of our engine, charged only where the price book says so."""

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import read_decimal
from tests.conftest import MakeSettings
from tests.contract.test_money_cli import run
from tests.contract.test_settlement_matrix import leave_a_hold_open
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

BOOK = """
schema: steelyard.price-book/v1
name: engine-time
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    prices:
      input.text: { amount: 1, per: 1M }
      output.text: { amount: 2, per: 1M }
      engine.gpu_microseconds: { amount: 0.0005, per: 1M }
"""
TOKENS = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}
BY_TOKENS = 8 * INPUT_PRICE + 3 * OUTPUT_PRICE
GPU_PICOS = 500


def took(device_us: int, *, device: str = "gpu") -> dict[str, Any]:
    """A usage block as our engine writes it."""
    return TOKENS | {"engine": {"engine_us": 999, "device_us": device_us, "device": device}}


def ask(world: World, usage: dict[str, Any], **asked: Any) -> None:
    world.upstream.script = Script(words=["a", "b", "c"], usage=usage)
    answered = world.chat(**asked)
    assert answered.error is None, answered.error
    world.settle()


@pytest.mark.parametrize("stream", [False, True])
def test_engine_time_that_has_no_price_is_kept_and_charges_nothing(
    world: World, stream: bool
) -> None:
    world.organisation(dollars="1")

    ask(world, took(70_000), stream=stream)

    record = world.events()[-1].data
    assert record.meters == {"input.text": "8", "output.text": "3"}
    assert read_decimal(record.amount) == BY_TOKENS
    assert b'"device_us":70000' in bytes(record.upstream_usage).replace(b" ", b"")
    assert world.differences() == []


@pytest.mark.parametrize("stream", [False, True])
def test_engine_time_that_has_a_price_is_a_meter_and_is_charged_by_the_microsecond(
    world: World, stream: bool
) -> None:
    world.organisation(dollars="1")
    world.publish_prices(BOOK)

    ask(world, took(70_000), stream=stream)

    record = world.events()[-1].data
    assert record.meters == {
        "engine.gpu_microseconds": "70000",
        "input.text": "8",
        "output.text": "3",
    }
    assert read_decimal(record.amount) == 8 * 1_000_000 + 3 * 2_000_000 + 70_000 * GPU_PICOS
    assert read_decimal(record.held) >= read_decimal(record.amount)
    assert world.differences() == []


def test_time_beyond_what_is_held_is_charged_as_far_as_the_hold_goes(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(BOOK)

    ask(world, took(10**12), max_tokens=3)

    record = world.events()[-1].data
    assert read_decimal(record.amount) > read_decimal(record.held)
    assert world.balance().available.picos == 10**12 - read_decimal(record.held)
    assert world.differences() == []


def test_time_that_a_crashed_gateway_did_not_see_is_charged_as_far_as_the_hold_goes(
    world: World,
) -> None:
    world.organisation(dollars="1")
    world.publish_prices(BOOK)
    attempt = leave_a_hold_open(world, stream=True)
    world.upstream.logged[attempt] = took(10**12)
    world.stop_gateway()
    world.start_gateway()

    world.recover()
    world.settle()

    record = world.events()[-1].data
    assert record.end_cause == "gateway_crashed"
    assert record.meters["engine.gpu_microseconds"] == str(10**12)
    assert read_decimal(record.amount) > read_decimal(record.held)
    assert world.balance().available.picos == 10**12 - read_decimal(record.held)
    assert world.differences() == []


def test_time_of_the_other_device_is_not_charged(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(BOOK)

    ask(world, took(70_000, device="cpu"))

    assert world.events()[-1].data.meters == {"input.text": "8", "output.text": "3"}
    assert world.differences() == []


def test_verification_finds_an_event_that_leaves_priced_engine_time_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.organisation(dollars="1")
    world.publish_prices(BOOK)
    monkeypatch.setattr("steelyard.metering.usage.Usage.folded", _without_engine_time)

    ask(world, took(70_000))
    monkeypatch.undo()

    assert [line for line in world.differences() if "other counts than were reported" in line]


def _without_engine_time(usage: Any, _named: Any, **_: Any) -> Any:
    tokens = {m: n for m, n in usage.counts.items() if not m.startswith("engine.")}
    return type(usage)(tokens)


def test_the_report_puts_the_cost_of_the_time_beside_the_revenue_by_model_and_request(
    typed: World,
) -> None:
    typed.organisation(dollars="1")
    ask(typed, took(3_600_000))
    ask(typed, took(1_800_000))
    ask(typed, TOKENS)
    typed.clock.moment = datetime(2026, 12, 1, tzinfo=UTC)
    ask(typed, took(5))

    rates = ("--currency", "USD", "--gpu-hour", "0.1", "--cpu-hour", "7")
    found = run("cost", "serve", "--period", "2026-11", *rates, "--requests", "2")
    models_only = run("cost", "serve", "--period", "2026-11", *rates)
    other_currency = run("cost", "serve", "--period", "2026-11", "--currency", "CNY")

    [model] = found["models"]
    assert (model["requests"], model["untimed"], model["gpu_us"], model["cpu_us"]) == (
        3, 1, 5_400_000, 0,
    )  # fmt: skip
    assert read_decimal(model["revenue"]) == 3 * BY_TOKENS
    assert model["cost"] == "0.00015"
    assert read_decimal(model["margin"]) == 3 * BY_TOKENS - 150_000_000
    assert [row["gpu_us"] for row in found["requests"]] == [3_600_000, 1_800_000]
    assert [row["cost"] for row in found["requests"]] == ["0.0001", "0.00005"]
    assert found["requests"][0]["event_id"] == typed.events()[0].id
    assert models_only == {"models": [model], "requests": []}
    assert other_currency == {"models": [], "requests": []}


@pytest.fixture
def typed(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[World]:
    """A world whose books the commands find by the environment."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with World(settings) as world, capture_logs():
        world.clock.moment = datetime(2026, 11, 2, tzinfo=UTC)
        yield world
