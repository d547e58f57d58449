"""Answers that pass through in the upstream's own protocol: what is read of them, and what becomes
of those that have another shape."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.gateway.event_stream import payload_of
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.workloads.answer import Answer
from steelyard.gateway.workloads.messages_answer import MessagesAnswer
from steelyard.gateway.workloads.openai_answer import OpenAIAnswer
from steelyard.gateway.workloads.responses_answer import ResponsesAnswer
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.metering.upstream_usage import UpstreamUsageMalformed

RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [{"type": "message", "content": []}],
    "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "content": [{"type": "text", "text": "Paris"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 2},
}
COMPLETION: dict[str, Any] = {
    "id": "chat_1",
    "choices": [{"index": 0, "message": {"content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}
WHOLE: list[tuple[Callable[[], Answer], dict[str, Any]]] = [
    (ResponsesAnswer, RESPONSE),
    (MessagesAnswer, MESSAGE),
    (OpenAIAnswer, COMPLETION),
]
KINDS = [make.__name__ for make, _ in WHOLE]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(("make", "document"), WHOLE, ids=KINDS)
def test_the_usage_of_an_answer_that_passes_through_is_read(
    make: Callable[[], Answer], document: dict[str, Any]
) -> None:
    meter = AnswerMeter()

    make().read_whole(json.dumps(document).encode(), meter)

    assert meter.reported is not None
    assert (meter.reported.input_tokens, meter.reported.output_tokens) == (7, 2)
    assert meter.is_complete


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_the_usage_of_a_stream_of_responses_is_read(kind: str) -> None:
    meter = AnswerMeter()
    event = {"type": kind, "sequence_number": 3, "response": RESPONSE}

    shown = ResponsesAnswer().read_event(json.dumps(event).encode(), meter)

    assert list(shown) == []
    assert meter.reported is not None
    assert (meter.reported.input_tokens, meter.reported.output_tokens) == (7, 2)


@pytest.mark.parametrize(("make", "document"), WHOLE, ids=KINDS)
@given(wrong=JSON, where=st.integers(0, 10))
def test_an_answer_of_another_shape_is_read_or_is_the_failure_of_its_upstream(
    make: Callable[[], Answer], document: dict[str, Any], wrong: Any, where: int
) -> None:
    name = sorted(document)[where % len(document)]
    body = json.dumps({**document, name: wrong}).encode()

    with suppress(UpstreamFailed, UpstreamUsageMalformed):
        make().read_whole(body, AnswerMeter())


TEXTS = st.sampled_from(["usage", 'a,"usage":null}', '","usage": null}', "a\nb", "", ", ", "}"])
USAGES = st.sampled_from([None, {"prompt_tokens": 1}, {"prompt_tokens": 1, "completion_tokens": 2}])


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """An event as any server may write it: its fields in any order, with any white space."""
    choice = {"index": 0, "delta": {"content": draw(TEXTS)}, "finish_reason": None}
    fields: dict[str, Any] = {"choices": [choice] * draw(st.integers(0, 2))}
    fields |= draw(st.dictionaries(st.sampled_from(["id", "model", "x"]), TEXTS | JSON))
    if draw(st.booleans()):
        fields["nested"] = {"usage": draw(USAGES)}
    if draw(st.booleans()):
        fields["usage"] = draw(USAGES)
    names = draw(st.permutations(sorted(fields)))
    indent = draw(st.sampled_from([None, 1]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
    written = json.dumps(
        {name: fields[name] for name in names}, indent=indent, separators=separators
    )
    if draw(st.booleans()):
        written = written.replace('"usage"', '"us\\u0061ge"', 1)
    return written.encode()


@given(payload=chunks())
def test_a_chunk_passes_through_as_it_is_but_for_its_usage(payload: bytes) -> None:
    expected = json.loads(payload)
    is_reported = expected.pop("usage", None) is not None
    meter = AnswerMeter()

    events = OpenAIAnswer().read_event(payload, meter)

    assert (meter.reported is not None) is is_reported
    if is_reported and not expected["choices"]:
        assert list(events) == []
    else:
        (event,) = events
        assert event.count(b"\n") == 2
        assert json.loads(payload_of(event)) == expected
