"""What an upstream is told of the tenant that it works for."""

import asyncio
from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from steelyard.gateway.upstreams.base import Timeouts
from steelyard.gateway.upstreams.habits import CHAT, ENGINE, Habits
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream
from steelyard.gateway.workloads.asked import JSON_TYPE


@pytest.mark.parametrize(("habits", "told"), [(ENGINE, "acme"), (Habits(), None)])
def test_only_our_engine_is_told_whose_turn_it_is(habits: Habits, told: str | None) -> None:
    whole, streamed = asyncio.run(_ask_twice(habits))

    assert (whole.get("X-Fairness-Key"), streamed.get("X-Fairness-Key")) == (told, told)
    assert (whole["X-Request-Id"], streamed["X-Request-Id"]) == ("one", "two")


async def _ask_twice(habits: Habits) -> list[Mapping[str, str]]:
    """The headers of a whole answer and of a stream, as a server gets them."""
    seen: list[Mapping[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.json_response({})

    application = web.Application()
    application.router.add_post(CHAT, answer)
    async with TestServer(application) as server, _upstream(server, habits) as upstream:
        await upstream.answer(CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE)
        stream = upstream.stream(
            CHAT, b"{}", request_id="two", tenant="acme", content_type=JSON_TYPE
        )
        async with stream:
            pass
    return seen


def _upstream(server: BaseTestServer, habits: Habits) -> OpenAIHttpUpstream:
    return OpenAIHttpUpstream(
        "test",
        str(server.make_url("")),
        count_source="engine",
        habits=habits,
        timeouts=Timeouts(connect_s=5, first_token_s=5, between_tokens_s=5),
        connections_max=2,
    )
