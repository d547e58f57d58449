"""A run that is at work: what it knows, who bears what of it, and how it is told."""

from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio

from steelyard.access.tenant import Department
from steelyard.access.virtual_key import VirtualKey
from steelyard.errors import SteelyardError
from steelyard.gateway.pipelines.pipeline import BY_TOKENS, Pipeline
from steelyard.gateway.pipelines.run_store import Bearer, StoredCall, StoredRun
from steelyard.gateway.pipelines.values import filled
from steelyard.gateway.run_lease import RunLease
from steelyard.money import write_decimal

CALLS_AT_ONCE: Final = 16
Document = dict[str, Any]
Tell = Callable[[str, Document], Awaitable[None]]
StageStatus = Literal["completed", "skipped", "failed", "not_run"]


@dataclass(slots=True)
class RunAtWork:
    """One run; `departments` are those that its pipeline names, by name."""

    stored: StoredRun
    pipeline: Pipeline
    key: VirtualKey
    departments: Mapping[str, Department]
    tell: Tell
    scope: Document
    known: dict[tuple[str, int], StoredCall]
    # One hold for all stages, which grows as they come; none where nothing is run.
    run_lease: RunLease | None = None
    limiter: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(CALLS_AT_ONCE)
    )
    statuses: dict[str, StageStatus] = field(default_factory=dict[str, StageStatus])
    errors: dict[str, SteelyardError] = field(default_factory=dict[str, SteelyardError])
    writes: list["Future[None]"] = field(default_factory=list["Future[None]"])

    def payer_of(self, stage: str) -> Department:
        payer = self.pipeline.stages[stage].payer
        return self.departments[payer] if payer else self.key.department

    def bearers_of(self, stage: str) -> dict[str, Bearer]:
        """Who bears a stage, by id, where it is split; by tokens: in proportion to those of the
        stages that it waits for, by who pays for these. None of them had any: its payer bears it."""
        split = self.pipeline.stages[stage].split
        if split is None:
            return {}
        if split == BY_TOKENS:
            split = self._tokens_before(stage)
        named = {**self.departments, self.key.department.name: self.key.department}
        return {named[name].id: Bearer(name, weight) for name, weight in split.items()}

    def document(self) -> Document:
        """The run with its tree of costs: the run, its stages, their calls."""
        stages = [self.stage_document(name) for name in self.pipeline.stages]
        total, shares = 0, dict[str, int]()
        for call in self.known.values():
            total += call.picos
            for department, share in call.shares().items():
                shares[department] = shares.get(department, 0) + share
        assert sum(shares.values()) == total, f"{self.stored.id}: shares add up to the cost"
        return {
            "id": self.stored.id,
            "object": "pipeline.run",
            "pipeline": self.stored.pipeline,
            "status": self.stored.status,
            "created_at": self.stored.created_at,
            "error": self.stored.error,
            "stages": stages,
            "output": filled(self.pipeline.output, self.scope),
            "usage": {
                "cost": write_decimal(total),
                "currency": self.key.department.organisation.currency,
            },
            "shares": {name: write_decimal(share) for name, share in sorted(shares.items())},
        }

    def stage_document(self, name: str) -> Document:
        calls = [call for (stage, _), call in sorted(self.known.items()) if stage == name]
        document: Document = {
            "name": name,
            "status": self.statuses.get(name, "not_run"),
            "cost": write_decimal(sum(call.picos for call in calls)),
            "calls": [_call_document(call) for call in calls],
        }
        error = self.errors.get(name)
        if error is not None:
            document["error"] = {"code": error.code, "message": str(error)}
        return document

    def _tokens_before(self, stage: str) -> dict[str, int]:
        needs, tokens = self.pipeline.needs[stage], dict[str, int]()
        for call in self.known.values():
            if call.stage in needs and call.tokens:
                tokens[call.department] = tokens.get(call.department, 0) + call.tokens
        return tokens


def _call_document(call: StoredCall) -> Document:
    document: Document = {
        "event_id": call.event_id,
        "department": call.department,
        "cost": write_decimal(call.picos),
    }
    if call.bearers:
        document["shares"] = {name: write_decimal(p) for name, p in sorted(call.shares().items())}
    return document
