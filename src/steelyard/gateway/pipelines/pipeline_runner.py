"""Runs pipelines: each stage is a request like any other, paid by whom the pipeline says.

Read `PipelineRunner.run` first. A stage that has ended is kept, so a run that failed goes on behind
it when it is tried again; what has ended is charged, what has not is not.
"""

import contextlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio import sleep

from steelyard.access.rate_limit import RateLimited
from steelyard.access.tenant import Department
from steelyard.access.virtual_key import VirtualKey
from steelyard.clock import Clock
from steelyard.errors import Refusal, SteelyardError
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.pipelines.pipeline import (
    FAN_OUT_MAX,
    Pipeline,
    PipelineMalformed,
    Stage,
    read_pipeline,
)
from steelyard.gateway.pipelines.run_at_work import Document, RunAtWork, StageStatus, Tell
from steelyard.gateway.pipelines.run_inputs import read_inputs
from steelyard.gateway.pipelines.run_store import (
    Bearer,
    CallCost,
    RunStore,
    StoredCall,
    StoredRun,
    written,
)
from steelyard.gateway.pipelines.stage_requests import FILE_ENDPOINTS, read_stage_request
from steelyard.gateway.pipelines.values import filled
from steelyard.gateway.serve import serve
from steelyard.gateway.whole_client import WholeClient
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.form import FormFile
from steelyard.ids import derived_id, new_id
from steelyard.metering.usage import tokens_within
from steelyard.metering.usage_event import EventCharge, read_meters
from steelyard.money import read_decimal

log = structlog.get_logger()

# How often a request is asked that the limits of its key turn down, and how long it waits between.
TRIES_MAX: Final = 10
WAIT_MIN_S: Final = 0.05
WAIT_MAX_S: Final = 90.0
SHIPPED: Final = Path(__file__).parent / "shipped"
# Pipelines of so many texts are kept as they were read.
READ_MAX: Final = 100


class PipelineNotFound(Refusal):
    """There is no such pipeline here."""

    code = "pipeline_not_found"


class RunOver(Refusal):
    """The run is at work, or has ended well: there is nothing to try again."""

    code = "run_over"


class StageFailed(Refusal):
    """A stage of the pipeline was refused by the model's server."""

    code = "stage_failed"


@dataclass(slots=True)
class PipelineRunner:
    """Runs pipelines of the operator's folder, and those that ship."""

    gateway: Gateway
    store: RunStore
    clock: Clock
    folder: Path
    find_department: Callable[[str], Department]
    # What those of these events cost that are in the books.
    booked: Callable[[Set[str]], Mapping[str, EventCharge]]
    _at_work: set[str] = field(default_factory=set[str])
    _pipelines: dict[str, Pipeline] = field(default_factory=dict[str, Pipeline])

    def find(self) -> None:
        """Finish the calls that an earlier life charged and did not tell; before anything of it is
        closed, in a thread."""
        self.store.resolve(self._charged)

    def names(self) -> list[str]:
        """The pipelines that there are."""
        return sorted({path.stem for place in self._places() for path in place.glob("*.yaml")})

    def definition(self, name: str) -> str:
        """The YAML of a pipeline; raises PipelineNotFound."""
        for place in self._places():
            if name in {path.stem for path in place.glob("*.yaml")}:
                return (place / f"{name}.yaml").read_text()
        raise PipelineNotFound(f"there is no pipeline {name[:100]!r}; there is {self.names()}")

    async def begin(
        self,
        name: str,
        given: Document,
        key: VirtualKey,
        *,
        files: Mapping[str, FormFile] | None = None,
    ) -> StoredRun:
        """A new run, checked before anything is held; raises what is wrong with it."""
        definition = await anyio.to_thread.run_sync(self.definition, name)
        pipeline = self._read(definition)
        values, kept = await anyio.to_thread.run_sync(read_inputs, pipeline, given, files or {})
        await self._departments(pipeline, key)
        run = StoredRun(
            id=f"run_{new_id()}",
            key_id=key.id,
            pipeline=name,
            definition=definition,
            input=values,
            created_at=int(self.clock.now().timestamp()),
        )
        for file_name, file in kept.items():
            await written(self.store.put_file(run.id, file_name, file))
        await written(self.store.put_run(run))
        return run

    async def begin_again(self, run: StoredRun) -> StoredRun:
        """The run once more, behind what has ended; raises RunOver."""
        if run.id in self._at_work or run.status == "completed":
            raise RunOver
        again = msgspec.structs.replace(run, life=run.life + 1, status="running", error=None)
        await written(self.store.put_run(again))
        return again

    async def run(self, stored: StoredRun, key: VirtualKey, tell: Tell) -> Document:
        """Run every stage as soon as those before it have ended; the run as it is at the end.

        Raises RunOver where it is at work already, for two who try it again at once.
        """
        if stored.id in self._at_work:
            raise RunOver
        self._at_work.add(stored.id)
        try:
            return await self._run(stored, key, tell)
        finally:
            self._at_work.discard(stored.id)

    async def _run(self, stored: StoredRun, key: VirtualKey, tell: Tell) -> Document:
        pipeline = self._read(stored.definition)
        departments = await self._departments(pipeline, key)
        # A run that has just begun has no calls yet.
        is_new = stored.life == 1
        calls = [] if is_new else await anyio.to_thread.run_sync(self.store.calls, stored.id)
        known = {(call.stage, call.place): call for call in calls}
        scope: Document = {"input": stored.input}
        run_lease = self.gateway.admission.holding.lease_for(stored.id)
        run = RunAtWork(stored, pipeline, key, departments, tell, scope, known, run_lease)
        try:
            await self._run_stages(run)
            error = next(iter(run.errors.values()), None)
            run.stored = msgspec.structs.replace(
                stored,
                status="failed" if error else "completed",
                error={"code": error.code, "message": str(error)} if error else None,
            )
            await written(self.store.put_run(run.stored))
            for write in run.writes:
                write.result()
            if not error:
                await written(self.store.drop_files(stored.id))
        finally:
            run_lease.end()
        return run.document()

    def told(self, stored: StoredRun, key: VirtualKey) -> Document:
        """A run as far as it is, without what it is doing."""
        pipeline = self._read(stored.definition)
        known = {(call.stage, call.place): call for call in self.store.calls(stored.id)}
        run = RunAtWork(stored, pipeline, key, {}, _tell_nobody, {"input": stored.input}, known)
        for (name, _), call in known.items():
            run.statuses[name] = "completed"
            stage, value = pipeline.stages[name], msgspec.json.decode(call.body)
            if stage.for_each is None:
                run.scope[name] = value
            else:
                run.scope.setdefault(name, []).append(value)
        return run.document()

    async def _run_stages(self, run: RunAtWork) -> None:
        sorter = TopologicalSorter(run.pipeline.needs)
        sorter.prepare()
        changed = anyio.Event()

        async def work(name: str) -> None:
            nonlocal changed
            run.statuses[name] = await self._run_stage(run, name)
            sorter.done(name)
            await run.tell("stage.ended", run.stage_document(name))
            changed.set()

        async with anyio.create_task_group() as tasks:
            while sorter.is_active():
                for name in sorter.get_ready():
                    tasks.start_soon(work, name)
                await changed.wait()
                changed = anyio.Event()

    async def _run_stage(self, run: RunAtWork, name: str) -> StageStatus:
        stage = run.pipeline.stages[name]
        if any(run.statuses[one] in {"failed", "not_run"} for one in run.pipeline.needs[name]):
            return "not_run"
        if stage.when and not stage.when.holds(filled(stage.when.value, run.scope)):
            return "skipped"
        await run.tell("stage.started", {"name": name})
        try:
            run.scope[name] = await self._call_all(run, name, stage)
        except SteelyardError as error:
            run.errors[name] = error
            return "failed"
        return "completed"

    async def _call_all(self, run: RunAtWork, name: str, stage: Stage) -> Any:
        """The answer of a stage, or of each entry that it is for."""
        if stage.for_each is None:
            return await self._call(run, name, stage, 0, run.scope)
        entries: Any = filled(stage.for_each, run.scope)
        if not isinstance(entries, list) or len(cast("list[Any]", entries)) > FAN_OUT_MAX:
            raise PipelineMalformed(
                f"the stage {name!r} is for each of a list with at most {FAN_OUT_MAX} entries"
            )
        listed = cast("list[Any]", entries)
        answers: list[Any] = [None] * len(listed)
        failures: list[SteelyardError] = []

        async def call(place: int) -> None:
            scope = {**run.scope, "item": listed[place]}
            async with run.limiter:
                try:
                    answers[place] = await self._call(run, name, stage, place, scope)
                except SteelyardError as failure:
                    failures.append(failure)

        async with anyio.create_task_group() as tasks:
            for place in range(len(listed)):
                tasks.start_soon(call, place)
        if failures:
            raise failures[0]
        return answers

    async def _call(
        self, run: RunAtWork, name: str, stage: Stage, place: int, scope: Mapping[str, Any]
    ) -> Any:
        known = run.known.get((name, place))
        if known is not None:
            return msgspec.json.decode(known.body)
        body: Document = filled(stage.body, scope)
        read = partial(
            read_stage_request, stage.endpoint, body, partial(self.store.file, run.stored.id)
        )
        # A file takes a while to look at; others must not wait for it.
        is_slow = stage.endpoint in FILE_ENDPOINTS
        asked = await anyio.to_thread.run_sync(read) if is_slow else read()
        payer, bearers = run.payer_of(name), run.bearers_of(name)
        key = run.key
        if payer is not key.department:
            key = replace(key, department=payer, project=None)
        made = _Attempts(run.stored, name, place, payer.name, bearers, self.store)
        split = {department: bearer.weight for department, bearer in bearers.items()} or None
        asked = msgspec.structs.replace(made.noted(asked), run_lease=run.run_lease, split=split)
        client = await self._serve(asked, key, request_id=run.stored.id)
        if client.body is None:
            assert client.refused is not None, "a call was answered or refused"
            said = client.refused.body.decode(errors="replace")[:300]
            raise StageFailed(f"{name}: the model's server says {client.refused.status}: {said}")
        call = made.call(client.body, cost=self._cost_of(made.made[-1], key))
        run.writes.append(self.store.put_call(call))
        run.known[name, place] = call
        return msgspec.json.decode(client.body)

    async def _serve(self, asked: Asked, key: VirtualKey, *, request_id: str) -> WholeClient:
        """Ask, and wait where the limits of the key say so: a run is one caller."""
        for number in range(1, TRIES_MAX + 1):
            client = WholeClient()
            try:
                await serve(self.gateway, asked, key, client, request_id=request_id)
            except RateLimited as limited:
                if number == TRIES_MAX or limited.retry_after_s > WAIT_MAX_S:
                    raise
                await sleep(max(WAIT_MIN_S, limited.retry_after_s))
            else:
                return client
        raise AssertionError("the last try is answered or refused")

    def _cost_of(self, event_id: str, key: VirtualKey) -> CallCost:
        organisation_id = key.department.organisation.id
        closed = self.gateway.recent.find(event_id, organisation_id=organisation_id)
        assert closed is not None, f"{event_id} has just been charged"
        return CallCost(closed.total.picos, tokens_within(closed.usage.counts))

    async def _departments(self, pipeline: Pipeline, key: VirtualKey) -> dict[str, Department]:
        """Whom a pipeline names to pay or to bear; raises PipelineMalformed for one that there is
        not."""
        organisation = key.department.organisation.name
        departments: dict[str, Department] = {}
        for name, stage in pipeline.stages.items():
            for department in stage.departments - departments.keys():
                try:
                    departments[department] = await anyio.to_thread.run_sync(
                        self.find_department, f"{organisation}/{department}"
                    )
                except Refusal as error:
                    raise PipelineMalformed(f"the stage {name!r}: {error}") from error
        return departments

    def _read(self, definition: str) -> Pipeline:
        """A pipeline out of its text, which takes milliseconds the first time."""
        pipeline = self._pipelines.get(definition)
        if pipeline is None:
            pipeline = read_pipeline(definition)
            if len(self._pipelines) >= READ_MAX:
                self._pipelines.clear()
            self._pipelines[definition] = pipeline
        return pipeline

    def _charged(self, event_ids: Set[str]) -> dict[str, CallCost]:
        found = self.gateway.outbox.charges_of(frozenset(event_ids))
        charges = {**self.booked(event_ids - found.keys()), **found}
        return {
            event_id: CallCost(
                read_decimal(charge.amount), tokens_within(read_meters(charge.meters).counts)
            )
            for event_id, charge in charges.items()
        }

    def _places(self) -> tuple[Path, Path]:
        return self.folder, SHIPPED


@dataclass(slots=True)
class _Attempts:
    """The attempts of one call: called after it, and noted before they are charged."""

    run: StoredRun
    stage: str
    place: int
    department: str
    bearers: Mapping[str, Bearer]
    store: RunStore
    made: list[str] = field(default_factory=list[str])

    def noted(self, asked: Asked) -> Asked:
        async def keep(_event_id: str, body: bytes) -> None:
            await written(self.store.put_call(self.call(body, cost=None)))

        return msgspec.structs.replace(
            asked, keep=keep, new_attempt_id=self._new_id, is_repeatable=True
        )

    def call(self, body: bytes, *, cost: CallCost | None) -> StoredCall:
        return StoredCall(
            run_id=self.run.id,
            stage=self.stage,
            place=self.place,
            event_id=self.made[-1],
            department=self.department,
            bearers=self.bearers,
            body=body,
            cost=cost,
        )

    def _new_id(self) -> str:
        place = f"{self.stage}/{self.place}/{self.run.life}/{len(self.made)}"
        self.made.append(derived_id(place, after=self.run.id.removeprefix("run_")))
        return self.made[-1]


async def _tell_nobody(kind: str, document: Document) -> None:
    del kind, document


def quiet(tell: Tell, *, gone: type[BaseException]) -> Tell:
    """The same, for a listener who may leave: the run goes on without it."""

    async def told(kind: str, document: Document) -> None:
        with contextlib.suppress(gone):
            await tell(kind, document)

    return told
