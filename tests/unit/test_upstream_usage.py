"""Every shape of a usage block becomes the same disjoint meters."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.metering.upstream_usage import UpstreamUsageMalformed, read_upstream_usage
from steelyard.metering.usage import Usage

TEXT, READ, WRITE = "input.text", "input.text.cache_read", "input.text.cache_write"
COUNTS = st.integers(min_value=0, max_value=10**9)


def _read(**block: Any) -> dict[str, int]:
    usage = read_upstream_usage(json.dumps(block).encode())
    assert usage is not None
    return dict(usage.counts)


def test_openai_totals_are_split() -> None:
    counts = _read(
        prompt_tokens=100,
        completion_tokens=50,
        prompt_tokens_details={"cached_tokens": 60, "audio_tokens": 10},
        completion_tokens_details={"reasoning_tokens": 20, "audio_tokens": 5},
    )

    assert counts == {
        TEXT: 30,
        READ: 60,
        "input.audio.tokens": 10,
        "output.text": 25,
        "output.text.reasoning": 20,
        "output.audio.tokens": 5,
    }


def test_sound_that_was_cached_is_counted_once() -> None:
    counts = _read(
        prompt_tokens=100, prompt_tokens_details={"cached_tokens": 80, "audio_tokens": 50}
    )

    assert counts == {READ: 50, "input.audio.tokens": 20, "input.audio.tokens.cache_read": 30}
    assert sum(counts.values()) == 100


def test_deepseek_has_a_name_of_its_own_for_cached_tokens() -> None:
    assert _read(prompt_tokens=9, completion_tokens=1, prompt_cache_hit_tokens=4) == {
        TEXT: 5,
        READ: 4,
        "output.text": 1,
    }


def test_responses_are_inclusive_and_messages_exclusive() -> None:
    inclusive = _read(
        input_tokens=10,
        output_tokens=3,
        total_tokens=13,
        input_tokens_details={"cached_tokens": 4},
        output_tokens_details={"reasoning_tokens": 1},
    )
    exclusive = _read(
        input_tokens=6,
        output_tokens=3,
        cache_read_input_tokens=4,
        cache_creation_input_tokens=9,
        cache_creation={"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 2},
    )

    assert inclusive == {TEXT: 6, READ: 4, "output.text": 2, "output.text.reasoning": 1}
    assert exclusive == {
        TEXT: 6,
        READ: 4,
        WRITE: 7,
        "input.text.cache_write_1h": 2,
        "output.text": 3,
    }


@given(prompt=COUNTS, completion=COUNTS, cached=COUNTS, audio=COUNTS, reasoning=COUNTS)
def test_parts_add_up_to_the_total_or_are_refused(
    prompt: int, completion: int, cached: int, audio: int, reasoning: int
) -> None:
    block = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }

    try:
        usage = read_upstream_usage(json.dumps(block).encode())
    except UpstreamUsageMalformed:
        assert max(cached, audio) > prompt or reasoning > completion
        return

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (prompt, completion)


def test_our_engines_time_is_a_meter_and_what_others_call_so_is_not() -> None:
    tokens: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 1}
    share = {"engine_us": 950, "device_us": 812}

    assert _read(**tokens, engine={**share, "device": "cpu"})["engine.cpu_microseconds"] == 812
    assert _read(**tokens, engine={**share, "device": "gpu"})["engine.gpu_microseconds"] == 812
    for foreign in ("v8", 3, None, {"device": "gpu"}, {**share, "device": "tpu"}, ["cpu"]):
        assert _read(**tokens, engine=foreign) == {TEXT: 3, "output.text": 1}
    with pytest.raises(UpstreamUsageMalformed):
        _read(**tokens, engine={"device_us": -1, "device": "cpu"})


def test_engine_time_is_counted_where_it_is_named_and_nowhere_else() -> None:
    usage = Usage({TEXT: 3, "engine.gpu_microseconds": 9, "engine.cpu_microseconds": 4})

    assert usage.folded({TEXT}).counts == {TEXT: 3}
    assert usage.folded({TEXT, "engine.gpu_microseconds"}).counts == {
        TEXT: 3,
        "engine.gpu_microseconds": 9,
    }


@pytest.mark.parametrize(
    "block", [b'{"prompt_tokens":"many"}', b'{"prompt_tokens":1,"completion_tokens":-1}', b"[]"]
)
def test_what_cannot_be_read_is_refused(block: bytes) -> None:
    with pytest.raises(UpstreamUsageMalformed):
        read_upstream_usage(block)


def test_tokens_without_a_price_of_their_own_are_text() -> None:
    usage = Usage({TEXT: 5, "input.audio.tokens": 7, "output.image.tokens": 3, "search": 1})

    assert dict(usage.folded({TEXT}).counts) == {TEXT: 12, "output.text": 3}
    assert usage.folded(usage.counts) == usage
