"""Where a request goes, and where it goes next: retries, fallbacks, and what each attempt costs."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from steelyard.entrypoints.gateway_metrics import GatewayMetrics
from steelyard.gateway.model_catalog import Routes
from steelyard.gateway.routing.rules import (
    BreakerRules,
    Choice,
    DeploymentRules,
    ModelRules,
    RetryRules,
    RoutingTable,
)
from steelyard.gateway.upstreams.scripted import Script, ScriptedUpstream
from tests.conftest import MakeSettings
from tests.world import INPUT_PRICE, OUTPUT_PRICE, RecordingClient, World

PRICE_BOOK = """
schema: steelyard.price-book/v1
name: two-models
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: small
    prices: {input.text: {amount: 2, per: 1M}, output.text: {amount: 10, per: 1M}}
  - match: large
    prices: {input.text: {amount: 20, per: 1M}, output.text: {amount: 100, per: 1M}}
"""
ANSWER = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE
AT_ONCE = RetryRules(backoff_first_s=0.001, backoff_max_s=0.002)


@dataclass
class Seconds:
    """A clock of seconds that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Routed:
    """A world with two servers of `small` and one of `large`."""

    world: World
    clock: Seconds = field(default_factory=Seconds)
    first: ScriptedUpstream = field(default_factory=lambda: ScriptedUpstream(name="first"))
    second: ScriptedUpstream = field(default_factory=lambda: ScriptedUpstream(name="second"))
    large: ScriptedUpstream = field(default_factory=lambda: ScriptedUpstream(name="large"))

    def route(
        self,
        *,
        retries: RetryRules = AT_ONCE,
        breaker: BreakerRules | None = None,
        choice: Choice = "weighted",
        weights: tuple[int, ...] = (1000, 1),
        fallbacks: list[str] | None = None,
    ) -> None:
        """Nearly always the first server is asked first."""
        deployments = [
            DeploymentRules(upstream=upstream.name, model="scripted", weight=weight)
            for upstream, weight in zip((self.first, self.second), weights, strict=False)
        ]
        small = ModelRules(
            deployments=deployments, choice=choice, fallbacks=fallbacks or [], aliases=["fast"]
        )
        on_large = DeploymentRules(upstream="large", model="scripted")
        large = ModelRules(deployments=[on_large], context_tokens=9000)
        self.world.stop_gateway()
        self.world.monotonic = self.clock
        self.world.routes = Routes(
            [self.first, self.second, self.large],
            frozenset(),
            {"small": small, "large": large},
            RoutingTable(retries=retries, breaker=breaker or BreakerRules(failures=0)),
        )
        self.world.start_gateway()

    def causes(self) -> list[tuple[str, str, int]]:
        """Every event: which server, how it ended, what it cost; with nothing wrong in the books."""
        self.world.settle()
        assert self.world.differences() == []
        return [
            (event.data.upstream, event.data.end_cause, _picos(event.data.amount))
            for event in self.world.events()
        ]


def _picos(amount: str) -> int:
    return round(float(amount) * 10**12)


@pytest.fixture
def routed(make_settings: MakeSettings) -> Generator[Routed]:
    with World(make_settings()) as world:
        world.publish_prices(PRICE_BOOK)
        world.organisation(dollars="1")
        built = Routed(world)
        built.route()
        yield built


BEFORE_FIRST = "upstream_failed_before_first_token"
FAULTS = [
    pytest.param(Script(drops_requests=True), BEFORE_FIRST, id="dropped"),
    pytest.param(Script(fails_after_words=0), BEFORE_FIRST, id="broke off"),
    pytest.param(Script(raw=b'data: {"error": {"message": "x"}}\n\n'), BEFORE_FIRST, id="error"),
    pytest.param(Script(status=429), "upstream_refused", id="too many requests"),
    pytest.param(Script(status=503), "upstream_refused", id="unavailable"),
    pytest.param(Script(status=404), "upstream_refused", id="unknown there"),
    pytest.param(Script(status=401), BEFORE_FIRST, id="key refused"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("script", "cause"), FAULTS)
def test_a_server_that_fails_before_the_first_byte_costs_nothing_and_another_answers(
    script: Script, cause: str, stream: bool, routed: Routed
) -> None:
    routed.first.script = script

    answered = routed.world.chat(model="fast", stream=stream)

    assert answered.status == 200
    assert answered.client.headers["x-steelyard-attempts"] == "2"
    assert routed.causes() == [("first", cause, 0), ("second", "completed", ANSWER)]
    failed, served = routed.world.events()
    assert failed.data.request_id == served.data.request_id
    assert failed.id != served.id
    assert {e.data.model_requested for e in (failed, served)} == {"fast"}
    assert {e.data.model_served for e in (failed, served)} == {"small"}
    assert answered.client.usage()["event_id"] == served.id
    assert routed.world.balance().held.picos == 0
    assert routed.world.balance().total.picos == 10**12 - ANSWER


def test_after_the_first_word_no_other_server_is_asked(routed: Routed) -> None:
    routed.first.script = Script(words=("one", "two"), fails_after_words=1)

    answered = routed.world.chat(model="small", stream=True)

    assert answered.client.words() == ["one"]
    assert answered.client.chunks()[-1]["error"]["code"] == "upstream_failed"
    assert routed.second.bodies == []
    assert routed.causes() == [("first", "upstream_failed", 7 * INPUT_PRICE + OUTPUT_PRICE)]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_the_request_is_not_tried_elsewhere(status: int, routed: Routed) -> None:
    routed.first.script = Script(status=status)

    answered = routed.world.chat(model="small")

    assert answered.status == status
    assert routed.second.bodies == []
    assert routed.causes() == [("first", "upstream_refused", 0)]


def test_a_fallback_is_priced_as_the_model_that_served(routed: Routed) -> None:
    routed.route(fallbacks=["large"])
    routed.first.script = routed.second.script = Script(drops_requests=True)

    answered = routed.world.chat(model="fast", stream=True)

    assert answered.status == 200
    assert answered.client.headers["x-steelyard-model"] == "large"
    assert routed.causes() == [
        ("first", BEFORE_FIRST, 0),
        ("second", BEFORE_FIRST, 0),
        ("large", "completed", 10 * ANSWER),
    ]
    last = routed.world.events()[-1].data
    assert (last.model_requested, last.model_served) == ("fast", "large")
    assert answered.client.usage()["cost"] == last.amount


def test_where_all_fail_the_client_is_told_of_the_last_and_pays_nothing(routed: Routed) -> None:
    routed.first.script, routed.second.script = Script(drops_requests=True), Script(status=429)

    answered = routed.world.chat(model="small")

    assert answered.status == 429
    assert [cost for _, _, cost in routed.causes()] == [0, 0]
    assert answered.client.headers["x-steelyard-event-id"] == routed.world.events()[-1].id
    assert routed.world.balance().total.picos == 10**12


def test_a_key_that_an_upstream_refuses_is_our_trouble_and_not_the_clients(
    routed: Routed,
) -> None:
    routed.first.script = routed.second.script = Script(status=403)

    answered = routed.world.chat(model="small")

    assert answered.status == 502
    assert answered.error is not None
    assert answered.error.code == "upstream_key_refused"


def test_a_balance_that_covers_no_second_hold_is_told_of_the_first_failure(
    routed: Routed,
) -> None:
    routed.route(fallbacks=["large"])
    routed.world.organisation("thin", dollars="0.0005")
    routed.first.script = Script(drops_requests=True)
    routed.second.script = Script(status=503)

    answered = routed.world.chat("thin", model="small")

    assert answered.status == 503
    assert routed.large.bodies == []
    assert [upstream for upstream, _, _ in routed.causes()] == ["first", "second"]


def test_one_server_is_asked_again_after_a_pause_and_only_as_often_as_is_allowed(
    routed: Routed,
) -> None:
    retries = RetryRules(attempts_max=3, backoff_first_s=0.001, backoff_max_s=4)
    routed.route(retries=retries, weights=(1,))
    routed.first.script = Script(drops_requests=True)

    answered = routed.world.chat(model="small")

    assert answered.status == 503
    assert routed.causes() == [("first", BEFORE_FIRST, 0)] * 3


def test_a_pause_that_the_server_wants_is_not_cut_short(routed: Routed) -> None:
    routed.route(retries=RetryRules(attempts_max=3, backoff_max_s=2), weights=(1,))
    routed.first.script = Script(status=503)

    answered = routed.world.chat(model="small")

    # The script asks for three seconds, which is longer than anybody is kept waiting.
    assert answered.status == 503
    assert routed.causes() == [("first", "upstream_refused", 0)]


def test_retries_are_a_share_of_the_requests(routed: Routed) -> None:
    retries = RetryRules(
        budget_burst=2, budget_percent=25, backoff_first_s=0.001, backoff_max_s=0.002
    )
    routed.route(retries=retries)
    routed.first.script = routed.second.script = Script(status=500)

    for _ in range(10):
        routed.world.chat(model="small")

    # Ten first tries, two from the burst, and a quarter of ten.
    assert len(routed.first.bodies) + len(routed.second.bodies) == 10 + 4


def test_a_server_that_keeps_failing_rests_and_is_tried_by_one_request_later(
    routed: Routed,
) -> None:
    routed.route(breaker=BreakerRules(failures=2, open_s=10), weights=(1000, 1))
    routed.first.script = Script(status=500)
    for _ in range(2):
        routed.world.chat(model="small")
    assert len(routed.first.bodies) == 2

    routed.world.chat(model="small")
    assert len(routed.first.bodies) == 2

    routed.clock.now = 10
    routed.first.script = Script()
    for _ in range(2):
        assert routed.world.chat(model="small").status == 200
    assert len(routed.first.bodies) == 4


def test_prometheus_is_told_of_retries_fallbacks_and_breakers(routed: Routed) -> None:
    routed.route(breaker=BreakerRules(failures=1, open_s=10), fallbacks=["large"])
    routed.first.script = routed.second.script = Script(status=500)
    gateway = routed.world.gateway()

    assert routed.world.chat(model="small").status == 200
    told = set(GatewayMetrics(gateway).expose().decode().splitlines())

    first = 'model="small",upstream="first",upstream_model="scripted"'
    names = 'model="{}",state="{}",upstream="{}",upstream_model="scripted"'
    breaker = f"steelyard_deployment_breaker{{{{{names}}}}} {{}}"
    assert {
        'steelyard_retries_total{again="other",model="small",upstream="second"} 1.0',
        'steelyard_retries_total{again="fallback",model="large",upstream="large"} 1.0',
        breaker.format("small", "open", "first", 1.0),
        breaker.format("small", "closed", "second", 0.0),
        breaker.format("large", "closed", "large", 1.0),
        f"steelyard_deployment_breaker_openings_total{{{first}}} 1.0",
        f"steelyard_deployment_open_requests{{{first}}} 0.0",
        'steelyard_upstream_up{upstream="first"} 1.0',
    } <= told


def test_where_every_server_rests_nobody_is_asked_and_the_client_knows_when_to_come(
    routed: Routed,
) -> None:
    routed.route(breaker=BreakerRules(failures=1, open_s=10))
    routed.first.script = routed.second.script = Script(status=500)
    routed.world.chat(model="small")
    asked = len(routed.first.bodies) + len(routed.second.bodies)

    answered = routed.world.chat(model="small")

    assert answered.status == 503
    assert answered.error is not None
    assert answered.error.code == "circuit_open"
    assert len(routed.first.bodies) + len(routed.second.bodies) == asked == 2
    assert len(routed.causes()) == 2


def test_a_weight_is_a_share_of_the_requests_exactly(routed: Routed) -> None:
    routed.route(weights=(3, 1))

    for _ in range(8):
        routed.world.chat(model="small")

    assert (len(routed.first.bodies), len(routed.second.bodies)) == (6, 2)


def test_the_least_busy_server_is_asked(routed: Routed) -> None:
    routed.route(choice="least_busy", weights=(1, 1))
    routed.first.script = Script(hangs_after_words=0)
    asked = {"model": "small", "max_tokens": 5}

    async def ask() -> None:
        async with anyio.create_task_group() as tasks:
            hanging = dict(asked)
            tasks.start_soon(routed.world.chat_async, "acme", hanging)
            while not routed.first.bodies:
                await anyio.sleep(0.001)
            for _ in range(3):
                answered = await routed.world.chat_async("acme", dict(asked))
                assert answered.status == 200
            tasks.cancel_scope.cancel()

    anyio.run(ask)
    assert (len(routed.first.bodies), len(routed.second.bodies)) == (1, 3)


def test_a_client_that_leaves_while_it_waits_makes_no_other_attempt(routed: Routed) -> None:
    retries = RetryRules(backoff_first_s=60, backoff_max_s=60)
    routed.route(retries=retries, weights=(1,))
    routed.first.script = Script(drops_requests=True)
    client = RecordingClient()

    async def ask() -> None:
        async with anyio.create_task_group() as tasks:
            given = {"model": "small", "client": client}
            tasks.start_soon(routed.world.chat_async, "acme", given)
            while not routed.first.bodies or routed.world.admission.catalog.states()[0].open_count:
                await anyio.sleep(0.001)
            client.leave()

    anyio.run(ask)
    assert routed.causes() == [("first", BEFORE_FIRST, 0)]


def test_a_server_that_did_not_answer_the_last_look_is_passed_over_without_an_attempt(
    routed: Routed,
) -> None:
    routed.world.chat(model="small")
    routed.first.script = Script(is_away=True)

    answered = routed.world.chat(model="small")

    assert answered.status == 200
    assert routed.world.admission.catalog.down() == {"first": "upstream_unavailable"}
    assert [upstream for upstream, _, _ in routed.causes()] == ["first", "second"]


def test_other_routes_do_not_touch_a_stream_that_runs(routed: Routed) -> None:
    routed.first.script = Script(words=("one", "two", "three"))
    world = routed.world
    only_second = ModelRules(deployments=[DeploymentRules(upstream="second", model="scripted")])
    seen: list[Any] = []

    async def ask() -> None:
        catalog = world.admission.catalog

        async def replace() -> None:
            while not routed.first.bodies:
                await anyio.lowlevel.checkpoint()
            catalog.replace(Routes([routed.second], frozenset(), {"small": only_second}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(replace)
            seen.append(await world.chat_async("acme", {"model": "small", "stream": True}))
        seen.append(await world.chat_async("acme", {"model": "small"}))

    anyio.run(ask)
    assert seen[0].client.words() == ["one", "two", "three"]
    assert [upstream for upstream, _, _ in routed.causes()] == ["first", "second"]
