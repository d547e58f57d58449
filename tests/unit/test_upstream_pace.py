"""Time-outs by phase, and what is kept from whom, against a server that is told what to do."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from steelyard.gateway.upstreams.base import (
    Timeouts,
    UpstreamFailed,
    UpstreamKeyRefused,
    UpstreamTimedOut,
    UpstreamUnavailable,
)
from steelyard.gateway.upstreams.habits import CHAT, MESSAGES, Habits
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream
from steelyard.gateway.workloads.asked import JSON_TYPE

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = Timeouts(connect_s=5, first_token_s=0.2, between_tokens_s=0.1)
KEY = {"Authorization": "Bearer sk-never-told"}


@asynccontextmanager
async def upstream_of(
    answer: Answer, *, habits: Habits | None = None, timeouts: Timeouts = QUICK, query: str = ""
) -> AsyncGenerator[OpenAIHttpUpstream]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server:
        upstream = OpenAIHttpUpstream(
            "test",
            str(server.make_url("")),
            count_source="provider",
            habits=habits or Habits(),
            timeouts=timeouts,
            connections_max=2,
            headers=KEY,
            query=query,
        )
        async with upstream:
            yield upstream


def events(*pauses_s: float, piece: bytes = b"data: {}\n\n") -> Answer:
    """A stream with a pause before each event, and headers at once."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            await response.write(piece)
        return response

    return answer


async def read(answer: Answer, timeouts: Timeouts = QUICK) -> int:
    async with (
        upstream_of(answer, timeouts=timeouts) as upstream,
        upstream.stream(
            CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
        ) as stream,
    ):
        return sum([len(payloads) async for payloads in stream.payloads()])


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.json_response({})


def test_a_stream_within_every_limit_is_read_to_its_end() -> None:
    patient = Timeouts(connect_s=5, first_token_s=5, between_tokens_s=5, total_s=5)

    assert asyncio.run(read(events(0.05, 0.01, 0.01), patient)) == 3


def test_a_stream_that_always_goes_on_ends_all_the_same() -> None:
    total = Timeouts(connect_s=5, first_token_s=5, between_tokens_s=5, total_s=0.3)

    with pytest.raises(UpstreamTimedOut, match=r"longer than 0\.3 s"):
        asyncio.run(read(events(*[0.05] * 100), total))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(silent, r"longer than 0\.2 s for the first token", id="no headers"),
        pytest.param(events(1), r"longer than 0\.2 s for the first token", id="no first event"),
        pytest.param(
            events(*[0.05] * 100, piece=b": still here\n\n"),
            r"longer than 0\.2 s for the first token",
            id="comments are no events",
        ),
        pytest.param(events(0, 1), r"silent for 0\.1 s", id="no next event"),
    ],
)
def test_each_phase_of_a_stream_has_its_limit(answer: Answer, told: str) -> None:
    with pytest.raises(UpstreamTimedOut, match=told):
        asyncio.run(read(answer))


async def ask(answer: Answer, *, timeouts: Timeouts = QUICK) -> int:
    async with upstream_of(answer, timeouts=timeouts) as upstream:
        came = await upstream.answer(
            CHAT, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
        )
        return came.status


def test_a_whole_answer_has_a_limit_on_its_silence_and_one_on_all_of_it() -> None:
    patient = Timeouts(connect_s=5, first_token_s=5, between_tokens_s=5, total_s=0.2)

    with pytest.raises(UpstreamTimedOut, match=r"longer than 0\.2 s for the beginning"):
        asyncio.run(ask(silent))
    with pytest.raises(UpstreamTimedOut, match=r"longer than 0\.2 s for the whole answer"):
        asyncio.run(ask(silent, timeouts=patient))


def test_a_redirection_is_not_followed_so_that_no_key_goes_where_it_points() -> None:
    seen: list[str] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    assert asyncio.run(ask(redirect)) == 307
    assert seen == [CHAT]


def test_no_server_is_asked_to_compress_and_each_is_shown_its_key() -> None:
    seen: list[dict[str, str]] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        return web.json_response({})

    asyncio.run(ask(look))

    assert seen[0]["Accept-Encoding"] == "identity"
    assert seen[0]["Authorization"] == KEY["Authorization"]


async def _listed(status: int, body: str) -> list[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type="application/json")

    async with upstream_of(answer) as upstream:
        return [model.id for model in await upstream.models()]


def test_what_a_server_lists_is_read_and_one_without_a_list_is_well_all_the_same() -> None:
    listed = asyncio.run(_listed(200, '{"data": [{"id": "a", "object": "model"}]}'))
    without = asyncio.run(_listed(404, "{}"))

    assert (listed, without) == (["a"], [])
    with pytest.raises(UpstreamKeyRefused):
        asyncio.run(_listed(401, '{"error": {"message": "Incorrect key sk-never-told"}}'))
    with pytest.raises(UpstreamUnavailable):
        asyncio.run(_listed(500, "{}"))
    with pytest.raises(UpstreamFailed):
        asyncio.run(_listed(200, "<html>"))


@pytest.mark.parametrize(
    ("habits", "path", "body", "asked"),
    [
        (Habits(counts_at="tokenize"), CHAT, '{"count": 12}', "/tokenize"),
        (
            Habits(counts_at="messages"),
            MESSAGES,
            '{"input_tokens": 12}',
            "/v1/messages/count_tokens",
        ),
    ],
)
def test_a_prompt_is_counted_where_the_kind_counts(
    habits: Habits, path: str, body: str, asked: str
) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return web.Response(text=body, content_type="application/json")

    async def count() -> int:
        async with upstream_of(answer, habits=habits) as upstream:
            return await upstream.count_prompt_tokens(path, b"{}")

    assert asyncio.run(count()) == 12
    assert seen == [asked]


def test_azures_older_addresses_have_the_deployment_and_the_version_in_them() -> None:
    habits = Habits(has_deployment_paths=True)
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.path_qs)
        return web.json_response({})

    async def call() -> None:
        path = habits.path_for(CHAT, model="my-gpt")
        async with upstream_of(answer, habits=habits, query="?api-version=2024-10-21") as upstream:
            await upstream.answer(
                path, b"{}", request_id="one", tenant="acme", content_type=JSON_TYPE
            )

    asyncio.run(call())
    assert seen == ["/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"]
