"""What runs of pipelines set aside, are charged and give back; the whole product in one process."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.billing.billing_period import read_month
from steelyard.billing.chargeback import split
from steelyard.billing.chargeback_posting import show_chargeback
from steelyard.gateway.pipelines import pipeline_runner
from steelyard.gateway.pipelines.pipeline_runner import PipelineRunner, RunOver
from steelyard.gateway.pipelines.run_store import RunStore, StoredRun
from steelyard.gateway.upstreams.base import UpstreamAnswer
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.ids import new_id
from steelyard.metering.usage_event import EventCharge, decode_event
from steelyard.money import read_decimal, write_decimal
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

# Seven tokens of prompt and two of answer, as the upstream counts.
CALL = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE
HEAD = "schema: steelyard.pipeline/v1\nname: p\ninput: [texts]\nstages:\n"
Document = dict[str, Any]


class Killed(BaseException):
    """The gateway is not there any more."""


@dataclass(slots=True)
class MoodyUpstream(ScriptedUpstream):
    """Refuses what says so, as long as it is in that mood."""

    is_moody: bool = True
    prompts: list[str] = field(default_factory=list[str])

    async def answer(self, path: str, body: bytes, **named: Any) -> UpstreamAnswer:
        text: str = msgspec.json.decode(body)["messages"][0]["content"]
        self.prompts.append(text)
        if "fails" in text and self.is_moody:
            return UpstreamAnswer(400, b'{"error": {"message": "no"}}')
        return await super(MoodyUpstream, self).answer(path, body, **named)


@dataclass(slots=True)
class Pipelines:
    """A world in which pipelines can be run; `kill` ends its gateway as SIGKILL does."""

    world: World
    folder: Path
    upstream: MoodyUpstream = field(default_factory=MoodyUpstream)
    store: RunStore = field(init=False)
    runner: PipelineRunner = field(init=False)

    def __post_init__(self) -> None:
        self.world.upstream = self.upstream
        self.world.stop_gateway()
        self.start()

    def start(self) -> None:
        self.world.start_gateway()
        self.store = RunStore(self.folder / f"{new_id()}.db")
        self.open()

    def open(self) -> None:
        self.runner = PipelineRunner(
            gateway=self.world.gateway(),
            store=self.store,
            clock=self.world.clock,
            folder=self.folder,
            find_department=self.world.stores.access.find_department,
            booked=lambda ids: _booked(self.world, ids),
        )

    def kill(self) -> None:
        self.world.stop_gateway()
        self.world.start_gateway()
        self.open()
        self.runner.find()
        self.world.recover()
        self.world.settle()

    def run(self, *stages: str, killed_after: int | None = None, **given: Any) -> Document:
        (self.folder / "p.yaml").write_text(HEAD + "".join(stages))
        given.setdefault("texts", [])

        async def begin() -> StoredRun:
            return await self.runner.begin("p", given, self.world.keys["acme"])

        stored = anyio.run(begin)
        return self._work(stored, killed_after=killed_after)

    def run_again(self, run_id: str, *, killed_after: int | None = None) -> Document:
        stored = self.store.run(run_id, key_id=self.world.keys["acme"].id)
        return self._work(anyio.run(self.runner.begin_again, stored), killed_after=killed_after)

    def run_again_twice(self, run_id: str) -> list[str]:
        """How both of two tries end that begin at the same time."""
        key, ended = self.world.keys["acme"], list[str]()
        stored = self.store.run(run_id, key_id=key.id)

        async def tell(_kind: str, _document: Document) -> None: ...

        async def again() -> None:
            try:
                life = await self.runner.begin_again(stored)
                ended.append((await self.runner.run(life, key, tell))["status"])
            except RunOver as over:
                ended.append(over.code)

        async def both() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(again)
                tasks.start_soon(again)

        anyio.run(both)
        self.world.settle()
        return sorted(ended)

    def _work(self, stored: StoredRun, *, killed_after: int | None) -> Document:
        told: list[str] = []

        async def tell(kind: str, _document: Document) -> None:
            told.append(kind)
            if killed_after is not None and told.count("stage.ended") > killed_after:
                raise Killed

        async def work() -> Document:
            await self.world.prices.snapshot.refresh()
            await self.world.limits.snapshot.refresh()
            await self.world.admission.catalog.refresh()
            return await self.runner.run(stored, self.world.keys["acme"], tell)

        ended: Document = {"id": stored.id, "status": "killed"}
        try:
            ended = anyio.run(work)
        except BaseExceptionGroup as group:
            killed, others = group.split(Killed)
            assert killed is not None
            assert others is None, others
            self.kill()
        self.world.keep_leases()
        self.world.settle()
        return ended

    def spent(self) -> int:
        return sum(read_decimal(event.data.amount) for event in self.world.events())


def _booked(world: World, ids: Any) -> Mapping[str, EventCharge]:
    with world.stores.reports.snapshot() as snapshot:
        found = [snapshot.recent_events(event_id=one, limit=1) for one in ids]
    events = [decode_event(event.body) for listed in found for event in listed]
    return {event.id: EventCharge(event.data.amount, event.data.meters) for event in events}


def _stage(name: str, text: str, *, tokens: int = 20, rest: str = "") -> str:
    message = f"[{{ role: user, content: '{text}' }}]"
    body = f"{{ model: scripted, max_tokens: {tokens}, messages: {message} }}"
    return f"  {name}: {{ endpoint: /v1/chat/completions, body: {body}{rest} }}\n"


@pytest.fixture
def pipelines(world: World, tmp_path: Path) -> Pipelines:
    return Pipelines(world, tmp_path)


def _differences(pipelines: Pipelines) -> Sequence[object]:
    balance = pipelines.world.balance()
    return [*pipelines.world.differences(), *([balance.held] if balance.held.picos else [])]


def test_a_run_is_charged_the_sum_of_its_stages_out_of_one_lease(pipelines: Pipelines) -> None:
    pipelines.world.organisation(dollars="1")

    run = pipelines.run(_stage("a", "one"), _stage("b", "two", rest=", after: [a]"))

    assert run["status"] == "completed"
    assert run["usage"]["cost"] == write_decimal(2 * CALL)
    assert len({event.data.lease_id for event in pipelines.world.events()} - {None}) == 1
    assert _differences(pipelines) == []


def test_a_run_that_cannot_pay_its_first_stage_costs_nothing(pipelines: Pipelines) -> None:
    pipelines.world.organisation(dollars="0.0001")

    run = pipelines.run(_stage("a", "one"), _stage("b", "two", rest=", after: [a]"))

    assert (run["status"], run["error"]["code"]) == ("failed", "insufficient_funds")
    assert [stage["status"] for stage in run["stages"]] == ["failed", "not_run"]
    assert pipelines.upstream.prompts == []
    assert pipelines.spent() == 0
    assert _differences(pipelines) == []


def test_a_run_whose_money_ends_is_charged_what_has_ended_and_goes_on_after_a_top_up(
    pipelines: Pipelines,
) -> None:
    organisation = pipelines.world.organisation(dollars="0.001")
    stages = _stage("a", "one"), _stage("b", "two", tokens=200, rest=", after: [a]")

    failed = pipelines.run(*stages)
    charged = pipelines.spent()
    pipelines.world.top_up(organisation, "1")
    completed = pipelines.run_again(failed["id"])

    assert failed["error"]["code"] == "insufficient_funds"
    assert [stage["status"] for stage in failed["stages"]] == ["completed", "failed"]
    assert failed["usage"]["cost"] == write_decimal(charged) == write_decimal(CALL)
    assert completed["status"] == "completed"
    assert pipelines.upstream.prompts == ["one", "two"]
    assert pipelines.spent() == 2 * CALL
    assert _differences(pipelines) == []


def test_each_payer_of_a_run_has_a_lease_of_its_own(pipelines: Pipelines) -> None:
    world = pipelines.world
    organisation = world.organisation(dollars="1")
    sales = world.department(organisation, "sales")
    world.top_up(sales, "1")

    pipelines.run(_stage("a", "one"), _stage("b", "two", rest=", after: [a], payer: sales"))

    events = world.events()
    assert {event.data.payer_id for event in events} == {organisation.id, sales.id}
    assert len({event.data.lease_id for event in events}) == 2
    assert world.balance("acme/sales").held.picos == 0
    assert _differences(pipelines) == []


def test_what_runs_side_by_side_is_paid_from_one_lease(pipelines: Pipelines) -> None:
    pipelines.world.organisation(dollars="1")
    each = _stage("a", "${item}", rest=", for_each: '${input.texts}'")

    run = pipelines.run(each, texts=[f"number {number}" for number in range(30)])

    assert run["usage"]["cost"] == write_decimal(30 * CALL)
    assert len({event.data.lease_id for event in pipelines.world.events()} - {None}) == 1
    assert _differences(pipelines) == []


def test_what_departments_bear_of_a_run_is_what_they_are_charged_back(
    pipelines: Pipelines,
) -> None:
    world = pipelines.world
    organisation = world.organisation(dollars="1")
    world.department(organisation, "research", pays_from="organisation")
    world.department(organisation, "sales", pays_from="organisation")
    stages = [
        _stage("a", "one", rest=", payer: research"),
        _stage("b", "${item}", rest=", payer: sales, for_each: '${input.texts}'"),
        _stage("c", "all", rest=", after: [a, b], split: by_tokens"),
        _stage("d", "more", rest=", split: { acme: 1, sales: 6 }"),
    ]

    run = pipelines.run(*stages, texts=["two", "three"])

    # As many tokens were for sales as two calls have, and for research as one has.
    by_tokens = split(CALL, {"research": 9, "sales": 18})
    by_weight = split(CALL, {"acme": 1, "sales": 6})
    borne = {
        "acme": by_weight["acme"],
        "research": CALL + by_tokens["research"],
        "sales": 2 * CALL + by_tokens["sales"] + by_weight["sales"],
    }
    assert {name: read_decimal(share) for name, share in run["shares"].items()} == borne
    assert sum(borne.values()) == 5 * CALL == pipelines.spent()
    month = read_month("2026-11", time_zone="UTC")
    with world.stores.chargebacks.snapshot() as reports:
        shown = show_chargeback(reports, organisation, period=month).chargeback
    totals = {line.department: read_decimal(line.total) for line in shown.departments}
    assert totals == borne
    assert _differences(pipelines) == []


def test_a_split_by_tokens_of_stages_without_tokens_is_borne_by_who_pays(
    pipelines: Pipelines,
) -> None:
    pipelines.world.organisation(dollars="1")
    left_out = ", when: { value: '${input.texts.0}', in: [never] }"

    run = pipelines.run(
        _stage("a", "one", rest=left_out), _stage("b", "x", rest=", after: [a], split: by_tokens")
    )

    assert run["shares"] == {"acme": write_decimal(CALL)}


def test_a_run_waits_where_the_limits_of_its_key_say_so(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pipelines.world
    world.settings = world.settings.model_copy(update={"requests_per_minute": 3})
    world.stop_gateway()
    pipelines.start()
    world.organisation(dollars="1")

    async def sleep(delay: float) -> None:
        world.clock.advance(seconds=delay)
        await checkpoint()

    monkeypatch.setattr(pipeline_runner, "sleep", sleep)
    each = _stage("a", "${item}", rest=", for_each: '${input.texts}'")

    run = pipelines.run(each, texts=[f"number {number}" for number in range(7)])

    assert run["status"] == "completed", run["error"]
    assert pipelines.spent() == 7 * CALL


def test_two_who_try_a_run_again_at_once_run_it_once(pipelines: Pipelines) -> None:
    pipelines.world.organisation(dollars="1")
    failed = pipelines.run(_stage("a", "fails"))
    pipelines.upstream.is_moody = False

    ended = pipelines.run_again_twice(failed["id"])

    assert ended == ["completed", "run_over"]
    assert pipelines.spent() == CALL


def test_a_killed_run_gives_back_what_it_had_set_aside_and_goes_on(pipelines: Pipelines) -> None:
    pipelines.world.organisation(dollars="1")
    stages = _stage("a", "one"), _stage("b", "two", rest=", after: [a]")

    killed = pipelines.run(*stages, killed_after=0)
    held = pipelines.world.balance().held.picos
    run = pipelines.run_again(killed["id"])

    assert (killed["status"], held) == ("killed", 0)
    assert run["status"] == "completed"
    assert pipelines.upstream.prompts == ["one", "two"]
    assert pipelines.spent() == read_decimal(run["usage"]["cost"]) == 2 * CALL
    assert _differences(pipelines) == []


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[str], list[int | None], int]:
    """Stages that wait for some before them, of which some fail; where each life of the run is
    killed; and how much there is to spend, in calls."""
    stages: list[str] = []
    for number in range(draw(st.integers(1, 5))):
        before = [f"s{one}" for one in range(number)]
        after = draw(st.lists(st.sampled_from(before), unique=True, max_size=2)) if before else []
        text = draw(st.sampled_from(["fine", "fine", "fails"]))
        is_fan_out = draw(st.booleans())
        rest = f", after: [{', '.join(after)}]"
        rest += ", for_each: '${input.texts}'" if is_fan_out else ""
        stages.append(_stage(f"s{number}", f"{text} {number}", rest=rest))
    lives = draw(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=3))
    return stages, lives, draw(st.integers(0, 60))


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(history=_histories())
def test_no_history_of_a_run_makes_or_loses_money(
    history: tuple[list[str], list[int | None], int], pipelines: Pipelines
) -> None:
    stages, lives, calls = history
    world, name = pipelines.world, f"acme-{new_id()}"
    organisation = world.organisation(name, dollars=write_decimal(calls * CALL))
    world.keys["acme"], world.tenants["acme"] = world.keys[name], world.tenants[name]
    pipelines.upstream.is_moody = True
    before = pipelines.spent()

    run = pipelines.run(*stages, texts=["x", "y"], killed_after=lives[0])
    for killed_after in lives[1:]:
        with suppress(Exception):
            run = pipelines.run_again(run["id"], killed_after=killed_after)
    world.top_up(organisation, "1")
    pipelines.upstream.is_moody = False
    if run["status"] != "completed":
        run = pipelines.run_again(run["id"])

    assert run["status"] == "completed"
    assert pipelines.spent() - before == read_decimal(run["usage"]["cost"])
    balance = world.balance()
    assert balance.available.picos == calls * CALL + 10**12 - (pipelines.spent() - before)
    assert _differences(pipelines) == []
