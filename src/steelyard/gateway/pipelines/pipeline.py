"""A pipeline as it is declared: its stages, what each is fed with, and in which order they can run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal, cast

import msgspec
import yaml

from steelyard.billing.event_shares import WEIGHT_MAX, is_split
from steelyard.errors import Refusal
from steelyard.gateway.pipelines.stage_requests import STAGE_ENDPOINTS

SCHEMA: Final = "steelyard.pipeline/v1"
STAGES_MAX: Final = 50
FAN_OUT_MAX: Final = 1_000
BY_TOKENS: Final = "by_tokens"
INPUT, ITEM = "input", "item"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_STAGE = re.compile(r"[a-z][a-z0-9_]{0,62}")
REFERENCE = re.compile(r"\$\{([^{}]*)\}")
PATH = re.compile(r"[A-Za-z0-9_-]+(?:\.(?:[A-Za-z0-9_-]+|\*))*")
InputKind = Literal["value", "audio", "document"]


class PipelineMalformed(Refusal):
    """The pipeline cannot be read."""

    code = "pipeline_malformed"


class PipelineCyclic(Refusal):
    """Stages of a pipeline wait for each other."""

    code = "pipeline_cyclic"


class Condition(msgspec.Struct, forbid_unknown_fields=True, rename={"among": "in"}):
    """A stage runs where the value is among these, or not among those."""

    value: str
    among: list[Any] | None = None
    not_in: list[Any] | None = None

    def holds(self, value: Any) -> bool:
        is_in = self.among is None or value in self.among
        return is_in and (self.not_in is None or value not in self.not_in)


class Stage(msgspec.Struct, forbid_unknown_fields=True):
    """One request of a pipeline, or one for each entry of a list."""

    endpoint: str
    body: dict[str, Any]
    after: list[str] = []
    when: Condition | None = None
    for_each: str | None = None
    payer: str | None = None
    split: dict[str, int] | Literal["by_tokens"] | None = None

    @property
    def departments(self) -> set[str]:
        """Those that pay for it or bear it, as far as they are named."""
        bearers = self.split if isinstance(self.split, dict) else {}
        return {*bearers, *([self.payer] if self.payer else [])}


class Pipeline(msgspec.Struct, forbid_unknown_fields=True, dict=True):
    """Stages by their name, and what comes out at the end."""

    schema: str
    name: str
    input: list[str] | dict[str, InputKind]
    stages: dict[str, Stage]
    output: Any = None

    @property
    def inputs(self) -> Mapping[str, InputKind]:
        """What a run has to give, and of which kind."""
        if isinstance(self.input, dict):
            return self.input
        return dict.fromkeys(self.input, "value")

    @cached_property
    def needs(self) -> Mapping[str, Sequence[str]]:
        """For each stage those that it waits for."""
        return {name: sorted(_needs(stage)) for name, stage in self.stages.items()}


def read_pipeline(text: str) -> Pipeline:
    """Parse and check a pipeline; raises PipelineMalformed or PipelineCyclic."""
    try:
        pipeline = msgspec.convert(yaml.safe_load(text), Pipeline)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise PipelineMalformed(f"the pipeline cannot be read: {error}") from error
    if pipeline.schema != SCHEMA:
        raise PipelineMalformed(f"expected the schema {SCHEMA}")
    if not _NAME.fullmatch(pipeline.name):
        raise PipelineMalformed(f"{pipeline.name[:100]!r} is not a name")
    if not 1 <= len(pipeline.stages) <= STAGES_MAX:
        raise PipelineMalformed(f"a pipeline has 1 to {STAGES_MAX} stages")
    for name, stage in pipeline.stages.items():
        _check_stage(name, stage, pipeline)
    for reference in references(pipeline.output):
        _check_reference(reference, "output", pipeline, has_item=False)
    try:
        TopologicalSorter(pipeline.needs).prepare()
    except CycleError as error:
        ring = " → ".join(error.args[1])
        raise PipelineCyclic(f"these stages wait for each other: {ring}") from error
    return pipeline


def references(value: Any) -> Iterator[str]:
    """Every `${…}` in a value, as deep as it is."""
    if isinstance(value, str):
        yield from REFERENCE.findall(value)
    elif isinstance(value, dict):
        for part in cast("dict[str, Any]", value).values():
            yield from references(part)
    elif isinstance(value, list):
        for part in cast("list[Any]", value):
            yield from references(part)


def _values(stage: Stage) -> list[Any]:
    return [stage.body, stage.for_each, stage.when.value if stage.when else None]


def _needs(stage: Stage) -> set[str]:
    heads = {reference.split(".")[0] for reference in references(_values(stage))}
    return {*stage.after, *heads} - {INPUT, ITEM}


def _check_stage(name: str, stage: Stage, pipeline: Pipeline) -> None:
    place = f"the stage {name[:100]!r}"
    if not _STAGE.fullmatch(name) or name in {INPUT, ITEM}:
        raise PipelineMalformed(
            f"{place}: its name is letters, digits and _, and not a word of ours"
        )
    if stage.endpoint not in STAGE_ENDPOINTS:
        raise PipelineMalformed(f"{place}: the endpoint is one of {', '.join(STAGE_ENDPOINTS)}")
    for wanted in stage.after:
        if wanted not in pipeline.stages:
            raise PipelineMalformed(f"{place} comes after {wanted[:100]!r}, which is no stage")
    for reference in references(_values(stage)):
        _check_reference(reference, place, pipeline, has_item=stage.for_each is not None)
    if stage.split == BY_TOKENS and not _needs(stage):
        raise PipelineMalformed(f"{place}: a split {BY_TOKENS} is for stages that wait for others")
    if isinstance(stage.split, dict) and not is_split(stage.split):
        raise PipelineMalformed(f"{place}: a split has weights from 1 to {WEIGHT_MAX}")


def _check_reference(reference: str, place: str, pipeline: Pipeline, *, has_item: bool) -> None:
    if not PATH.fullmatch(reference):
        raise PipelineMalformed(f"{place}: ${{{reference[:100]}}} is no path")
    head, *rest = reference.split(".")
    if head == INPUT:
        if not rest or rest[0] not in pipeline.inputs:
            raise PipelineMalformed(f"{place}: ${{{reference[:100]}}} is not in the input")
    elif head == ITEM:
        if not has_item:
            raise PipelineMalformed(f"{place}: ${{item}} is for stages with for_each")
    elif head not in pipeline.stages:
        raise PipelineMalformed(f"{place}: there is no stage {head[:100]!r}")
