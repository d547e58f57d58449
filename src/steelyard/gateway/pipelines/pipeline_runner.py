"""Runs pipelines: each stage is a request like any other, paid by whom the pipeline says.

Read `PipelineRunner.run` first. A stage that has ended is kept, so a run that failed goes on behind
it when it is tried again; what has ended is charged, what has not is not.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final, Literal, cast

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.access.tenant import Department
from steelyard.access.virtual_key import VirtualKey
from steelyard.clock import Clock
from steelyard.errors import Refusal, SteelyardError
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.batches.batch_lines import ENDPOINTS
from steelyard.gateway.pipelines.pipeline import (
    FAN_OUT_MAX,
    Pipeline,
    PipelineMalformed,
    Stage,
    read_pipeline,
)
from steelyard.gateway.pipelines.run_store import RunStore, StoredCall, StoredRun
from steelyard.gateway.pipelines.shares import split_by_weight
from steelyard.gateway.pipelines.values import filled
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.serve import serve
from steelyard.gateway.whole_client import WholeClient
from steelyard.gateway.workloads.asked import Asked
from steelyard.ids import derived_id, new_id
from steelyard.money import read_decimal, write_decimal

log = structlog.get_logger()

CALLS_AT_ONCE: Final = 16
SHIPPED: Final = Path(__file__).parent / "shipped"
Document = dict[str, Any]
Tell = Callable[[str, Document], Awaitable[None]]
StageStatus = Literal["completed", "skipped", "failed", "not_run"]


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
class _Run:
    """A run that is at work, and what it knows so far."""

    stored: StoredRun
    pipeline: Pipeline
    key: VirtualKey
    payers: Mapping[str, Department]
    tell: Tell
    scope: Document
    known: dict[tuple[str, int], StoredCall]
    # One hold for all stages, which grows as they come; none where nothing is run.
    run_lease: RunLease | None = None
    statuses: dict[str, StageStatus] = field(default_factory=dict[str, StageStatus])
    errors: dict[str, SteelyardError] = field(default_factory=dict[str, SteelyardError])


@dataclass(slots=True)
class PipelineRunner:
    """Runs pipelines of the operator's folder, and those that ship."""

    gateway: Gateway
    store: RunStore
    clock: Clock
    folder: Path
    find_department: Callable[[str], Department]
    # What those of these events cost that are in the books.
    booked: Callable[[Set[str]], Mapping[str, str]]
    _limiter: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(CALLS_AT_ONCE)
    )
    _at_work: set[str] = field(default_factory=set[str])

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

    async def begin(self, name: str, given: Document, key: VirtualKey) -> StoredRun:
        """A new run, checked before anything is held; raises what is wrong with it."""
        definition = await anyio.to_thread.run_sync(self.definition, name)
        pipeline = read_pipeline(definition)
        missing = [one for one in pipeline.input if one not in given]
        unknown = [one for one in given if one not in pipeline.input]
        if missing or unknown:
            what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0][:100]!r} too many"
            raise InvalidRequest(
                f"the input {what}; {name} takes {', '.join(pipeline.input)}", parameter="input"
            )
        await self._payers(pipeline, key)
        run = StoredRun(
            id=f"run_{new_id()}",
            key_id=key.id,
            pipeline=name,
            definition=definition,
            input=given,
            created_at=int(self.clock.now().timestamp()),
        )
        await anyio.to_thread.run_sync(self.store.put_run, run)
        return run

    async def begin_again(self, run: StoredRun) -> StoredRun:
        """The run once more, behind what has ended; raises RunOver."""
        if run.id in self._at_work or run.status == "completed":
            raise RunOver
        again = msgspec.structs.replace(run, life=run.life + 1, status="running", error=None)
        await anyio.to_thread.run_sync(self.store.put_run, again)
        return again

    async def run(self, stored: StoredRun, key: VirtualKey, tell: Tell) -> Document:
        """Run every stage as soon as those before it have ended; the run as it is at the end."""
        pipeline = read_pipeline(stored.definition)
        payers = await self._payers(pipeline, key)
        calls = await anyio.to_thread.run_sync(self.store.calls, stored.id)
        known = {(call.stage, call.place): call for call in calls}
        scope: Document = {"input": stored.input}
        run_lease = self.gateway.admission.holding.lease_for(stored.id)
        run = _Run(stored, pipeline, key, payers, tell, scope, known, run_lease)
        self._at_work.add(stored.id)
        try:
            await self._run_stages(run)
            error = next(iter(run.errors.values()), None)
            run.stored = msgspec.structs.replace(
                stored,
                status="failed" if error else "completed",
                error={"code": error.code, "message": str(error)} if error else None,
            )
            await anyio.to_thread.run_sync(self.store.put_run, run.stored)
        finally:
            run_lease.end()
            self._at_work.discard(stored.id)
        return self._document(run)

    def told(self, stored: StoredRun, key: VirtualKey) -> Document:
        """A run as far as it is, without what it is doing."""
        pipeline = read_pipeline(stored.definition)
        known = {(call.stage, call.place): call for call in self.store.calls(stored.id)}
        run = _Run(stored, pipeline, key, {}, _tell_nobody, {"input": stored.input}, known)
        for (name, _), call in known.items():
            run.statuses[name] = "completed"
            stage, value = pipeline.stages[name], msgspec.json.decode(call.body)
            if stage.for_each is None:
                run.scope[name] = value
            else:
                run.scope.setdefault(name, []).append(value)
        return self._document(run)

    async def _run_stages(self, run: _Run) -> None:
        sorter = TopologicalSorter(run.pipeline.needs)
        sorter.prepare()
        changed = anyio.Event()

        async def work(name: str) -> None:
            nonlocal changed
            run.statuses[name] = await self._run_stage(run, name)
            sorter.done(name)
            await run.tell("stage.ended", self._stage_document(run, name))
            changed.set()

        async with anyio.create_task_group() as tasks:
            while sorter.is_active():
                for name in sorter.get_ready():
                    tasks.start_soon(work, name)
                await changed.wait()
                changed = anyio.Event()

    async def _run_stage(self, run: _Run, name: str) -> StageStatus:
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

    async def _call_all(self, run: _Run, name: str, stage: Stage) -> Any:
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
            async with self._limiter:
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
        self, run: _Run, name: str, stage: Stage, place: int, scope: Mapping[str, Any]
    ) -> Any:
        known = run.known.get((name, place))
        if known is not None:
            return msgspec.json.decode(known.body)
        body = msgspec.json.encode(filled(stage.body, scope))
        asked = ENDPOINTS[stage.endpoint](body)
        if asked.is_streamed:
            raise PipelineMalformed(f"the stage {name!r} is not streamed")
        key = run.key
        if name in run.payers:
            key = replace(key, department=run.payers[name], project=None)
        made = _Attempts(run.stored, name, place, key.department.name, self.store)
        client = WholeClient()
        asked = replace(made.noted(asked), run_lease=run.run_lease)
        await serve(self.gateway, asked, key, client, request_id=run.stored.id)
        if client.body is None:
            assert client.refused is not None, "a call was answered or refused"
            said = client.refused.body.decode(errors="replace")[:300]
            raise StageFailed(f"{name}: the model's server says {client.refused.status}: {said}")
        picos = read_decimal(client.headers["x-steelyard-cost"])
        call = made.call(client.body, picos=picos)
        self.store.put_call(call)
        run.known[name, place] = call
        return msgspec.json.decode(client.body)

    async def _payers(self, pipeline: Pipeline, key: VirtualKey) -> dict[str, Department]:
        """Who pays for a stage, where that is not the key's own department; raises
        PipelineMalformed for one that there is not."""
        organisation = key.department.organisation.name
        payers: dict[str, Department] = {}
        for name, stage in pipeline.stages.items():
            for department in {*(stage.split or {}), *([stage.payer] if stage.payer else [])}:
                try:
                    found = await anyio.to_thread.run_sync(
                        self.find_department, f"{organisation}/{department}"
                    )
                except Refusal as error:
                    raise PipelineMalformed(f"the stage {name!r}: {error}") from error
                if department == stage.payer:
                    payers[name] = found
        return payers

    def _document(self, run: _Run) -> Document:
        """The run with its tree of costs: the run, its stages, their calls."""
        stages = [self._stage_document(run, name) for name in run.pipeline.stages]
        total, shares = 0, dict[str, int]()
        for call in run.known.values():
            picos = call.picos or 0
            total += picos
            weights = run.pipeline.stages[call.stage].split or {call.department: 1}
            for department, share in split_by_weight(picos, weights).items():
                shares[department] = shares.get(department, 0) + share
        assert sum(shares.values()) == total, f"{run.stored.id}: shares add up to the cost"
        return {
            "id": run.stored.id,
            "object": "pipeline.run",
            "pipeline": run.stored.pipeline,
            "status": run.stored.status,
            "created_at": run.stored.created_at,
            "error": run.stored.error,
            "stages": stages,
            "output": filled(run.pipeline.output, run.scope),
            "usage": {
                "cost": write_decimal(total),
                "currency": run.key.department.organisation.currency,
            },
            "shares": {name: write_decimal(share) for name, share in sorted(shares.items())},
        }

    def _stage_document(self, run: _Run, name: str) -> Document:
        calls = [call for (stage, _), call in sorted(run.known.items()) if stage == name]
        document: Document = {
            "name": name,
            "status": run.statuses.get(name, "not_run"),
            "cost": write_decimal(sum(call.picos or 0 for call in calls)),
            "calls": [
                {
                    "event_id": call.event_id,
                    "department": call.department,
                    "cost": write_decimal(call.picos or 0),
                }
                for call in calls
            ],
        }
        error = run.errors.get(name)
        if error is not None:
            document["error"] = {"code": error.code, "message": str(error)}
        return document

    def _charged(self, event_ids: Set[str]) -> dict[str, int]:
        found = self.gateway.outbox.amounts_of(frozenset(event_ids))
        amounts = {**self.booked(event_ids - found.keys()), **found}
        return {event_id: read_decimal(amount) for event_id, amount in amounts.items()}

    def _places(self) -> tuple[Path, Path]:
        return self.folder, SHIPPED


@dataclass(slots=True)
class _Attempts:
    """The attempts of one call: called after it, and noted before they are charged."""

    run: StoredRun
    stage: str
    place: int
    department: str
    store: RunStore
    made: list[str] = field(default_factory=list[str])

    def noted(self, asked: Asked) -> Asked:
        async def keep(_event_id: str, body: bytes) -> None:
            self.store.put_call(self.call(body, picos=None))

        return replace(asked, keep=keep, new_attempt_id=self._new_id, is_repeatable=True)

    def call(self, body: bytes, *, picos: int | None) -> StoredCall:
        return StoredCall(
            run_id=self.run.id,
            stage=self.stage,
            place=self.place,
            event_id=self.made[-1],
            department=self.department,
            body=body,
            picos=picos,
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
