"""What is read out of a request: how large it can be, how many answers it asks for, how it is
asked of a server that only chats."""

import base64
import json
from typing import Any

import pytest

from steelyard.gateway.refusals import EmptyPrompt, InvalidRequest, SurfaceNotServed
from steelyard.gateway.upstreams.habits import CHAT, ENGINE, MESSAGES, RESPONSES, Habits
from steelyard.gateway.workloads.asked import Asked, Limits
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.gateway.workloads.completion import parse_completion
from steelyard.gateway.workloads.embedding import parse_embedding
from steelyard.gateway.workloads.messages import parse_messages
from steelyard.gateway.workloads.prompt_size import IMAGE_TOKENS_MAX
from steelyard.gateway.workloads.responses import parse_response

CHATS_ONLY = frozenset({CHAT})


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def _asked_of(asked: Asked, paths: frozenset[str], habits: Habits = ENGINE) -> dict[str, Any]:
    body = asked.way_over(paths).upstream_body(
        model="m",
        is_streamed=asked.is_streamed,
        limits=Limits(9, 5),
        habits=habits,
        tenant="acme",
    )
    return json.loads(body)


def test_what_a_template_may_print_is_in_the_bound() -> None:
    plain = parse_chat(_body(messages=[{"role": "user", "content": "hi"}]))
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 500}}
    with_call = parse_chat(
        _body(messages=[{"role": "assistant", "tool_calls": [call]}, {"role": "user"}])
    )
    with_tools = parse_chat(
        _body(messages=[{"role": "user", "content": "hi"}], tools=[{"description": "y" * 900}])
    )

    assert plain.size.text_bytes == len("userhi")
    assert with_call.size.text_bytes > 500
    assert with_tools.size.text_bytes > 900
    assert with_tools.size.extra_tokens > 0


@pytest.mark.parametrize(
    ("given", "sent"),
    [({}, "acme"), ({"cache_salt": None}, "acme"), ({"cache_salt": "a"}, "acme/a")],
    ids=["no salt", "null", "a salt of its own"],
)
def test_cached_prompts_of_one_tenant_are_kept_from_another(
    given: dict[str, Any], sent: str
) -> None:
    asked = parse_chat(_body(messages=[{"role": "user", "content": "hi"}], **given))

    assert _asked_of(asked, CHATS_ONLY)["cache_salt"] == sent
    assert _asked_of(asked, CHATS_ONLY, Habits()).get("cache_salt") == given.get("cache_salt")


def test_what_is_no_salt_is_left_for_the_engine_to_refuse() -> None:
    asked = parse_chat(_body(messages=[{"role": "user", "content": "hi"}], cache_salt=7))

    assert _asked_of(asked, CHATS_ONLY)["cache_salt"] == 7


def test_a_picture_counts_as_a_picture_and_not_by_its_bytes() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"z" * 100_000).decode()
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]

    size = parse_chat(_body(messages=[{"role": "user", "content": parts}])).size

    assert (size.text_bytes, size.extra_tokens) == (len("userwhat?"), IMAGE_TOKENS_MAX)


def test_a_message_of_nothing_is_refused() -> None:
    with pytest.raises(EmptyPrompt):
        parse_chat(_body(messages=[{"role": "user", "content": ""}]))
    with pytest.raises(EmptyPrompt):
        parse_messages(_body(messages=[{"role": "user", "content": []}], max_tokens=1))


def test_choices_are_counted() -> None:
    assert parse_chat(_body(messages=[{"role": "user", "content": "x"}], n=4)).choice_count == 4
    assert parse_completion(_body(prompt="x", n=2, best_of=5)).choice_count == 5
    assert parse_embedding(_body(input=["x", "y"])).choice_count == 0
    with pytest.raises(InvalidRequest):
        parse_chat(_body(messages=[{"role": "user", "content": "x"}], n=0))


def test_unknown_fields_pass_through_untouched() -> None:
    asked = parse_chat(_body(messages=[{"role": "user", "content": "x"}], seed=7, odd={"a": [1.5]}))

    sent = _asked_of(asked, CHATS_ONLY)

    assert (sent["seed"], sent["odd"]) == (7, {"a": [1.5]})


def test_a_server_is_asked_in_its_own_words() -> None:
    asked = parse_chat(
        _body(messages=[{"role": "user", "content": "x"}], max_tokens=5, stream=True)
    )

    plain = _asked_of(asked, CHATS_ONLY, Habits(limit_fields={CHAT: "max_completion_tokens"}))
    ours = _asked_of(asked, CHATS_ONLY)

    assert plain["max_completion_tokens"] == 5
    assert "max_tokens" not in plain
    assert "max_prompt_tokens" not in plain
    assert plain["stream_options"] == {"include_usage": True}
    assert ours["max_prompt_tokens"] == 9
    assert ours["stream_options"]["continuous_usage_stats"] is True


def test_a_message_goes_as_it_is_to_a_server_of_its_kind() -> None:
    body = _body(messages=[{"role": "user", "content": "x"}], max_tokens=5, thinking={"a": 1})
    asked = parse_messages(body)

    sent = _asked_of(asked, frozenset({CHAT, MESSAGES}), Habits())

    assert sent == json.loads(body)


def test_a_message_is_translated_for_a_server_that_only_chats() -> None:
    picture = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "aa"},
    }
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "ok", "is_error": True}
    asked = parse_messages(
        _body(
            system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "see"}, picture]},
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [result, {"type": "text", "text": "well?"}]},
            ],
            max_tokens=5,
            stop_sequences=["END"],
            tools=[{"name": "f", "input_schema": {"type": "object"}}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
    )

    sent = _asked_of(asked, CHATS_ONLY, Habits())

    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    assert sent["messages"][0]["content"] == "be\nbrief"
    assert sent["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,aa"
    assert sent["messages"][3]["content"] == "error: ok"
    assert sent["stop"] == ["END"]
    assert sent["tool_choice"] == "required"
    assert sent["parallel_tool_calls"] is False


def test_a_response_is_translated_for_a_server_that_only_chats() -> None:
    asked = parse_response(
        _body(
            instructions="be brief",
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "see"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "rain"},
                {"type": "reasoning", "id": "r", "summary": []},
            ],
            text={"format": {"type": "json_schema", "name": "p", "schema": {}, "strict": True}},
            reasoning={"effort": "low"},
            max_output_tokens=5,
        )
    )

    sent = _asked_of(asked, CHATS_ONLY, Habits())

    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "assistant", "tool"]
    assert sent["response_format"]["json_schema"]["name"] == "p"
    assert sent["reasoning_effort"] == "low"
    assert sent["max_tokens"] == 5


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "prompt"])
def test_what_lies_on_a_server_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_response(_body(input="x", **{name: "resp_1"}))


@pytest.mark.parametrize(
    "asked",
    [
        lambda: parse_messages(
            _body(
                messages=[{"role": "user", "content": "x"}],
                max_tokens=1,
                tools=[{"type": "web_search_20250305", "name": "web_search"}],
            )
        ),
        lambda: parse_messages(
            _body(messages=[{"role": "user", "content": "x"}], max_tokens=1, tools=[{"no": "name"}])
        ),
        lambda: parse_response(_body(input="x", tools=[{"type": "file_search"}])),
    ],
)
def test_what_has_no_counterpart_is_refused_before_anything_is_held(asked: Any) -> None:
    with pytest.raises(InvalidRequest):
        asked().way_over(CHATS_ONLY)


def test_a_server_without_any_way_is_named() -> None:
    with pytest.raises(SurfaceNotServed, match="/v1/embeddings"):
        parse_embedding(_body(input="x")).way_over(frozenset({CHAT, RESPONSES}))
