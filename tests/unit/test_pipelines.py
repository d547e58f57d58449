"""How pipelines are declared, what their values become, and how their costs are split."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refusal, SteelyardError
from steelyard.gateway.pipelines.pipeline import PipelineCyclic, PipelineMalformed, read_pipeline
from steelyard.gateway.pipelines.pipeline_runner import SHIPPED
from steelyard.gateway.pipelines.run_inputs import cut, read_inputs
from steelyard.gateway.pipelines.stage_requests import read_stage_request
from steelyard.gateway.pipelines.values import filled
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.workloads.form import FormFile
from tests.recordings import record

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
        ("${a.list.*.deep}", [None, 2]),
        ("${a.name.*}", []),
    ],
)
def test_a_lone_reference_keeps_its_type_and_others_are_text(template: Any, value: Any) -> None:
    scope = {"a": {"list": [1, {"deep": 2}], "name": "you"}}

    assert filled(template, scope) == value


KINDS = HEAD.replace("[text]", "{ sound: audio, paper: document, text: value }")
TRANSCRIBE = "  a: { endpoint: /v1/audio/transcriptions, body: { file: '${input.sound}' } }\n"


def test_files_are_looked_at_before_a_run_begins() -> None:
    pipeline = read_pipeline(KINDS + TRANSCRIBE)
    sound = FormFile("a.wav", "audio/wav", record("wav", seconds=1.5))
    paper = base64.b64encode(b"one\n\ntwo").decode()

    values, kept = read_inputs(pipeline, {"text": 7, "paper": {"base64": paper}}, {"sound": sound})

    assert values == {
        "sound": {"file": "sound", "name": "a.wav", "seconds": 2},
        "paper": {"name": "file", "text": "one\n\ntwo", "pieces": ["one\n\ntwo"]},
        "text": 7,
    }
    assert kept == {"sound": sound}


@pytest.mark.parametrize(
    ("given", "sound", "code"),
    [
        ({"text": "x", "paper": "x"}, None, "invalid_request"),
        ({"text": "x", "paper": "x", "more": 1}, record("wav", seconds=1), "invalid_request"),
        ({"text": "x", "paper": "x", "sound": "x"}, None, "file_missing"),
        ({"text": "x", "paper": "x", "sound": {"base64": "?"}}, None, "file_missing"),
        ({"text": "x", "paper": "x"}, b"", "file_empty"),
        ({"text": "x", "paper": "x"}, b"hello", "audio_unsupported"),
        ({"text": "x", "paper": "x"}, record("wav", seconds=1)[:-10], "audio_truncated"),
        ({"text": "x", "paper": " "}, record("wav", seconds=1), "document_empty"),
        ({"text": "x", "paper": "a " * 2_000_000}, record("wav", seconds=1), "document_too_large"),
    ],
)
def test_a_bad_file_is_refused_by_its_own_code(
    given: dict[str, Any], sound: bytes | None, code: str
) -> None:
    files = {} if sound is None else {"sound": FormFile("a.wav", "audio/wav", sound)}

    with pytest.raises(SteelyardError) as refused:
        read_inputs(read_pipeline(KINDS + TRANSCRIBE), given, files)

    assert refused.value.code == code


@given(text=st.text(alphabet="ab \n", max_size=300), most=st.integers(2, 40))
def test_the_pieces_of_a_document_are_the_document(text: str, most: int) -> None:
    pieces = cut(text, most)

    assert "".join(pieces) == text
    assert all(len(piece) <= most for piece in pieces)


def test_a_transcription_is_a_form_with_the_file_of_the_run() -> None:
    sound = FormFile("a.wav", "audio/wav", record("wav", seconds=1))
    body = {"model": "whisper", "file": {"file": "sound"}, "language": "en"}

    asked = read_stage_request("/v1/audio/transcriptions", body, {"sound": sound}.__getitem__)

    assert asked.model == "whisper"
    assert asked.counts_max is not None
    assert asked.counts_max["input.audio.seconds"] == 1
    for wrong in ({"file": "sound"}, {"file": {"file": "sound"}, "response_format": "srt"}):
        with pytest.raises(InvalidRequest):
            read_stage_request("/v1/audio/transcriptions", wrong, {"sound": sound}.__getitem__)
