"""What an upstream's own log says of attempts, as the usage block that it would have sent."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from steelyard.gateway.upstreams.base import LoggedAttempts, Timeouts
from steelyard.gateway.upstreams.habits import ENGINE
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream

ENDED = {"state": "ended", "prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": 2}


def logged(name: str, state: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {"prompt_tokens": 9, "completion_tokens": 2 * len(answers)}
    return {"request_id": name, "model": "m", "state": state, **counts, "answers": answers}


def test_the_time_of_all_answers_to_one_prompt_is_told_with_their_tokens() -> None:
    first = {**ENDED, "engine_us": 70, "device_us": 50, "device": "gpu"}
    second = {**ENDED, "cached_tokens": 9, "engine_us": 7, "device_us": 5, "device": "gpu"}

    found = asyncio.run(_ask([logged("two", "ended", [first, second])]))

    assert json.loads(found.known["two"].usage) == {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 9},
        "engine": {"engine_us": 77, "device_us": 55, "device": "gpu"},
    }


def test_of_an_answer_that_was_lost_with_its_engine_no_time_is_told() -> None:
    lost = {"state": "lost", "prompt_tokens": 9}

    found = asyncio.run(
        _ask([logged("lost", "lost", [lost]), logged("running", "running", [ENDED])])
    )

    assert "engine" not in json.loads(found.known["lost"].usage)
    assert found.running == ["running"]


async def _ask(told: list[dict[str, Any]]) -> LoggedAttempts:
    async def requests(_request: web.Request) -> web.Response:
        return web.json_response({"requests": told})

    application = web.Application()
    application.router.add_post("/requests", requests)
    timeouts = Timeouts(connect_s=5, first_token_s=5, between_tokens_s=5)
    async with TestServer(application) as server:
        upstream = OpenAIHttpUpstream(
            "engine",
            str(server.make_url("")),
            count_source="engine",
            habits=ENGINE,
            timeouts=timeouts,
            connections_max=2,
        )
        async with upstream:
            return await upstream.logged_attempts([one["request_id"] for one in told])
