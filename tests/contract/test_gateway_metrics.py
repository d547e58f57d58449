"""What Prometheus reads of a gateway: requests, holds, leases, and an outbox whose disk fails."""

from collections.abc import Callable

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from steelyard.entrypoints.gateway_metrics import GatewayMetrics
from steelyard.eventlog.disk import FailingDisk
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money, read_decimal
from tests.unit.test_outbox import refuses, wait_until
from tests.world import USD, World

Samples = dict[tuple[str, ...], float]


def test_requests_are_counted_by_outcome_with_tokens_and_money(world: World) -> None:
    world.organisation(dollars="1")
    read = _reader(world)

    world.chat()
    world.chat(stream=True)
    world.chat(stream=True, leaves_after=1)
    samples = read()

    world.settle()
    charged = sum(read_decimal(event.data.amount) for event in world.events())
    assert samples["steelyard_requests_total", "completed"] == 2
    assert samples["steelyard_requests_total", "client_left"] == 1
    assert samples["steelyard_attempts_total", "completed", "scripted"] == 2
    assert samples["steelyard_charged_picos_total", "USD"] == charged
    assert samples["gen_ai_client_token_usage_sum", "scripted", "input"] == 3 * 7
    assert samples["gen_ai_client_token_usage_sum", "scripted", "output"] == 2 + 2 + 1
    assert samples["gen_ai_server_request_duration_seconds_count", "scripted"] == 3
    assert samples["gen_ai_server_time_to_first_token_seconds_count", "scripted"] == 3


def test_a_request_in_flight_and_its_hold_are_told_while_it_runs(world: World) -> None:
    world.organisation(dollars="1")
    read = _reader(world)
    during: list[Samples] = []

    world.chat(stream=True, watches=lambda: during.append(read()))
    after = read()

    assert during[0]["http_server_active_requests",] == 1
    assert during[0]["steelyard_gateway_open_holds", "books"] == 1
    assert during[0]["steelyard_gateway_held_picos", "USD"] == 266_000_000
    assert during[0]["steelyard_outbox_open_attempts",] == 1
    assert during[0]["steelyard_unexplained_holds",] == 0
    assert after["http_server_active_requests",] == 0
    assert after["steelyard_gateway_open_holds", "books"] == 0
    assert after["steelyard_outbox_open_attempts",] == 0


def test_a_hold_that_nobody_lets_go_of_is_unexplained(world: World) -> None:
    acme = world.organisation(dollars="1")
    read = _reader(world)
    hold = Hold(new_id(), acme.id, Money(5, USD), world.outbox.source, world.clock.now(), "{}")
    scope = HoldScope(acme.id, "a department", None, "a key", tokens_max=1)

    anyio.run(world.holding.place, hold, scope)

    assert read()["steelyard_unexplained_holds",] == 1


def test_a_hold_that_grows_is_told_as_large_as_it_is(world: World) -> None:
    acme = world.organisation(dollars="1")
    read = _reader(world)
    hold = Hold(new_id(), acme.id, Money(5, USD), world.outbox.source, world.clock.now(), "{}")
    scope = HoldScope(acme.id, "a department", None, "a key", tokens_max=1)

    async def place_and_grow() -> None:
        placed = await world.holding.place(hold, scope)
        await world.holding.grow(placed, amount=Money(9, USD), tokens_max=1)

    anyio.run(place_and_grow)

    assert read()["steelyard_gateway_held_picos", "USD"] == 9


def test_what_is_leased_is_free_or_held(world: World) -> None:
    world.organisation(dollars="1")
    read = _reader(world)
    for _ in range(2):
        world.chat()
    world.keep_leases()
    leased = 32 * 266_000_000
    during: list[Samples] = []

    world.chat(stream=True, watches=lambda: during.append(read()))
    after = read()

    assert during[0]["steelyard_leases", "open"] == 1
    assert during[0]["steelyard_lease_picos", "USD", "held"] == 266_000_000
    assert during[0]["steelyard_lease_picos", "USD", "free"] == leased - 266_000_000
    assert during[0]["steelyard_gateway_open_holds", "lease"] == 1
    assert after["steelyard_lease_picos", "USD", "held"] == 0
    assert after["steelyard_lease_picos", "USD", "free"] == leased - 34_000_000


@pytest.mark.parametrize("how", ["full", "broken"])
def test_requests_in_flight_finish_while_the_disk_fails_and_are_written_when_it_heals(
    how: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.gateway.closing.CLOSE_TIMEOUT_S", 0.3)
    disk, read = _on_a_failing_disk(world)
    world.upstream.script = Script(words=("one", "two", "three"))

    def fail() -> None:
        disk.room, disk.fails_to_sync = (0, False) if how == "full" else (None, True)

    streamed = world.chat(stream=True, watches=fail)
    failing = read()
    refused = world.chat()

    assert streamed.client.words() == ["one", "two", "three"], "what was begun is finished"
    assert streamed.client.chunks()[-1]["error"]["code"] == "event_log_unavailable"
    assert failing["steelyard_outbox_waiting_records",] == 1
    assert failing["steelyard_outbox_refusing",] == 1
    assert (refused.status, refused.error and refused.error.code) == (503, "event_log_unavailable")
    world.settle()
    assert world.events() == []

    disk.room, disk.fails_to_sync = None, False
    wait_until(lambda: not read()["steelyard_outbox_waiting_records",])
    healed = read()
    world.settle()

    assert healed["steelyard_outbox_refusing",] == 0
    assert healed["steelyard_outbox_lost_events_total",] == 0
    assert [event.data.end_cause for event in world.events()] == ["completed"]
    assert world.balance().held.picos == 0
    assert world.chat().status == 200
    assert world.differences() == []


def test_a_whole_answer_that_cannot_be_recorded_is_withheld_and_costs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.gateway.closing.CLOSE_TIMEOUT_S", 0.3)
    disk, read = _on_a_failing_disk(world)
    answer = type(world.upstream).answer

    async def answer_as_the_disk_fails(*given: object, **named: object) -> object:
        disk.fails_to_sync = True
        return await answer(*given, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(world.upstream), "answer", answer_as_the_disk_fails)
    withheld = world.chat()
    assert withheld.status == 503

    disk.fails_to_sync = False
    wait_until(lambda: not read()["steelyard_outbox_waiting_records",])
    world.settle()

    [event] = world.events()
    assert (event.data.end_cause, event.data.amount) == ("event_log_failed", "0")
    assert world.differences() == []


def test_what_is_lost_at_the_end_is_declared_and_resolved_by_the_next_life(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.gateway.closing.CLOSE_TIMEOUT_S", 0.3)
    disk, read = _on_a_failing_disk(world)

    def fail() -> None:
        disk.fails_to_sync = True

    world.chat(stream=True, watches=fail)
    with capture_logs() as lines:
        world.stop_gateway()
    lost = read()

    assert lost["steelyard_outbox_lost_events_total",] == 1
    [line] = [line for line in lines if line["event"] == "usage_event.lost"]
    assert (line["log_level"], read_decimal(line["amount"])) == ("critical", 34_000_000)
    world.disk = None
    world.start_gateway()
    assert world.recover() == 1
    world.settle()
    assert [event.id for event in world.events()] == [line["event_id"]]
    assert [event.data.end_cause for event in world.events()] == ["gateway_crashed"]
    assert world.balance().held.picos == 0
    assert world.differences() == []


def _on_a_failing_disk(world: World) -> tuple[FailingDisk, Callable[[], Samples]]:
    """A gateway on a disk that will fail; its recent life ended well."""
    world.organisation(dollars="1")
    world.stop_gateway()
    world.disk = disk = FailingDisk()
    world.start_gateway()
    assert not refuses(world.outbox)
    return disk, _reader(world)


def _reader(world: World) -> Callable[[], Samples]:
    """Reads every metric by its name and its labels' values, in the order of the labels' names."""
    metrics = GatewayMetrics(world.gateway())

    def read() -> Samples:
        families = text_string_to_metric_families(metrics.expose().decode())
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    return read
