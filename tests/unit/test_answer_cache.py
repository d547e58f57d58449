"""Which requests are the same, and how old an answer may be."""

import json
from typing import Any

import pytest

from steelyard.gateway.answer_cache import CachePolicy, place_of, read_policy
from steelyard.gateway.workloads.chat import parse_chat

MESSAGES = [{"role": "user", "content": "what do I owe?"}]


def _place(organisation: str = "acme", model_id: str = "scripted", **fields: Any) -> str:
    body = json.dumps({"model": "alias", "messages": MESSAGES, **fields}).encode()
    asked = parse_chat(body)
    way = asked.ways[0].prepared()
    place = place_of(asked, way, organisation_id=organisation, model_id=model_id)
    assert place is not None
    return f"{place.owner_id}/{place.name}"


@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": True}},
        {"user": "u-1"},
        {"metadata": {"ticket": "7"}},
        {"model": "another alias of the same model"},
    ],
    ids=str,
)
def test_what_does_not_change_the_answer_does_not_count(fields: dict[str, Any]) -> None:
    assert _place(**fields) == _place()


def test_order_and_spaces_do_not_count() -> None:
    first = b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"x"}]}'
    second = b'{ "messages": [{"content": "x", "role": "user"}], "temperature": 0, "model": "m" }'

    places = [
        place_of(asked, asked.ways[0].prepared(), organisation_id="acme", model_id="m")
        for asked in (parse_chat(first), parse_chat(second))
    ]

    assert places[0] == places[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5},
        {"max_tokens": 5},
        {"stream": True},
        {"n": 2},
        {"seed": 1},
        {"unknown_field": 1},
        {"messages": [{"role": "user", "content": "what do I owe ?"}]},
    ],
    ids=str,
)
def test_what_may_change_the_answer_counts(fields: dict[str, Any]) -> None:
    assert _place(**fields) != _place()


def test_no_organisation_sees_the_answers_of_another() -> None:
    assert _place("acme") != _place("globex")
    assert _place(model_id="scripted") != _place(model_id="other")


@pytest.mark.parametrize(
    ("cache_control", "ttl_s", "policy"),
    [
        (None, None, None),
        (None, 60, CachePolicy(60)),
        ("max-age=5", 60, CachePolicy(5)),
        ("max-age=500", 60, CachePolicy(60)),
        ("no-cache", 60, CachePolicy(60, may_read=False)),
        ("No-Cache, max-age=0", 60, CachePolicy(0, may_read=False)),
        ("no-store", 60, None),
        ("max-age=soon", 60, CachePolicy(60)),
        ("max-age=5", None, None),
    ],
)
def test_the_key_opts_in_and_cache_control_narrows_it(
    cache_control: str | None, ttl_s: int | None, policy: CachePolicy | None
) -> None:
    assert read_policy(cache_control, ttl_s=ttl_s) == policy
