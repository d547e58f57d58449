"""How pipelines are declared, what their values become, and how their costs are split."""

from typing import Any

import pytest

from steelyard.errors import Refusal
from steelyard.gateway.pipelines.pipeline import PipelineCyclic, PipelineMalformed, read_pipeline
from steelyard.gateway.pipelines.pipeline_runner import SHIPPED
from steelyard.gateway.pipelines.values import filled

HEAD = "schema: steelyard.pipeline/v1\nname: p\ninput: [text]\nstages:\n"
STAGE = "  {name}: {{ endpoint: /v1/embeddings, body: {{ input: '{input}' }}{rest} }}\n"


def _pipeline(*stages: tuple[str, str, str], rest: str = "") -> str:
    made = [STAGE.format(name=name, input=given, rest=more) for name, given, more in stages]
    return HEAD + "".join(made) + rest


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (_pipeline(("a", "${b}", ""), ("b", "${a.x}", "")), PipelineCyclic, "a → b → a|b → a → b"),
        (_pipeline(("a", "x", ", after: [a]")), PipelineCyclic, "a"),
        (_pipeline(("a", "${c.x}", "")), PipelineMalformed, "no stage 'c'"),
        (_pipeline(("a", "x", ", after: [c]")), PipelineMalformed, "no stage"),
        (_pipeline(("a", "${input.other}", "")), PipelineMalformed, "not in the input"),
        (_pipeline(("a", "${item}", "")), PipelineMalformed, "for_each"),
        (_pipeline(("a", "${}", "")), PipelineMalformed, "no path"),
        (_pipeline(("a", "x", ", split: {}")), PipelineMalformed, "weights"),
        (_pipeline(("a", "x", ", split: {b: 0}")), PipelineMalformed, "weights"),
        (_pipeline(("a", "x", ", split: by_tokens")), PipelineMalformed, "wait for others"),
        (_pipeline(("a", "x", ", split: evenly")), PipelineMalformed, "split"),
        (_pipeline(("a", "x", ", nonsense: 1")), PipelineMalformed, "nonsense"),
        (_pipeline(("input", "x", "")), PipelineMalformed, "name"),
        (_pipeline(("a", "x", ""), rest="output: '${b}'\n"), PipelineMalformed, "no stage"),
        (
            _pipeline(("a", "x", "")).replace("/v1/embeddings", "/v1/x"),
            PipelineMalformed,
            "endpoint",
        ),
        (_pipeline(), PipelineMalformed, "read"),
        (HEAD.replace("v1", "v9") + "  {}", PipelineMalformed, "expected"),
        ("- 1", PipelineMalformed, "read"),
        ("a: [", PipelineMalformed, "read"),
    ],
)
def test_a_pipeline_with_a_mistake_is_refused_by_name(
    text: str, kind: type[Refusal], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read_pipeline(text)


def test_a_stage_waits_for_what_it_names_and_for_what_it_comes_after() -> None:
    text = _pipeline(("a", "x", ""), ("b", "${a.x} ${input.text}", ""), ("c", "x", ", after: [b]"))

    assert read_pipeline(text).needs == {"a": [], "b": ["a"], "c": ["b"]}


def test_every_shipped_pipeline_can_be_read() -> None:
    files = sorted(SHIPPED.glob("*.yaml"))

    assert files
    assert [read_pipeline(path.read_text()).name for path in files] == [p.stem for p in files]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${a.list.1}", {"deep": 2}),
        ("${a.list.1.deep} of ${a.name}", "2 of you"),
        ("${a.none}", None),
        ("x${a.none}y${a.list.7}", "xy"),
        (["${a.name}", 1], ["you", 1]),
        ({"k": "${a.list.1}!"}, {"k": '{"deep": 2}!'}),
    ],
)
def test_a_lone_reference_keeps_its_type_and_others_are_text(template: Any, value: Any) -> None:
    scope = {"a": {"list": [1, {"deep": 2}], "name": "you"}}

    assert filled(template, scope) == value
