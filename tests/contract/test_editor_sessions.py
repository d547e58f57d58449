"""Whoever types on wants only the newest suggestion: the one before ends, charged by the policy."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from steelyard.gateway.editor_sessions import EditorSessions, read_session
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.upstreams.scripted import Script
from steelyard.metering.usage_event import DisconnectPolicy
from tests.world import INPUT_PRICE, OUTPUT_PRICE, RecordingClient, World

WORDS = ("one", "two", "three")
PROMPT_TOKENS = 7
HANGING = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS, hangs_after_words=2)
PROMPT = PROMPT_TOKENS * INPUT_PRICE
WHOLE = PROMPT + len(WORDS) * OUTPUT_PRICE


class Editor:
    """Asks one request after the other, each in the place of the one before."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions = EditorSessions()
        self.superseded: list[int] = []

    async def ask(self, number: int, session: str, **given: Any) -> RecordingClient:
        client = given.pop("client", RecordingClient())
        key = self.world.keys["acme"]
        with self.sessions.turn(key.id, session, client) as turn:
            await self.world.chat_async("acme", {**given, "client": turn})
        if turn.is_superseded:
            self.superseded.append(number)
        return client

    async def ask_twice(self, first: str, second: str, **given: Any) -> RecordingClient:
        """The second request comes when the first hangs; what the second one got."""
        self.world.upstream.script = HANGING
        asked, got = RecordingClient(), RecordingClient()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.ask(1, first, client=asked, **given))
            while not self.world.upstream.bodies or (given and len(asked.words()) < 2):
                await anyio.sleep(0.01)
            self.world.upstream.script = Script(words=WORDS, prompt_tokens=PROMPT_TOKENS)
            await self.ask(2, second, client=got)
            if first != second:
                assert not self.superseded
                asked.leave()
        return got


@pytest.mark.parametrize(
    ("policy", "picos"),
    [("delivered", PROMPT + 2 * OUTPUT_PRICE), ("prompt_only", PROMPT), ("free", 0)],
)
def test_a_stream_that_is_superseded_is_charged_by_the_disconnect_policy(
    policy: DisconnectPolicy, picos: int, world: World
) -> None:
    world.organisation(dollars="1")
    world.keys["acme"] = replace(world.keys["acme"], disconnect_policy=policy)
    editor = Editor(world)

    got = anyio.run(lambda: editor.ask_twice("left pane", "left pane", stream=True))
    world.settle()

    older, newer = world.events()
    assert editor.superseded == [1]
    assert (older.data.end_cause, newer.data.end_cause) == ("client_left", "completed")
    assert got.document["choices"][0]["message"]["content"].split() == list(WORDS)
    assert world.balance().total.picos == 10**12 - picos - WHOLE
    assert world.balance().held.picos == 0
    assert world.upstream.cancelled_count == 1
    assert world.differences() == []


def test_a_whole_answer_that_is_superseded_costs_nothing(world: World) -> None:
    world.organisation(dollars="1")
    editor = Editor(world)

    anyio.run(lambda: editor.ask_twice("left pane", "left pane"))
    world.settle()

    assert editor.superseded == [1]
    assert world.events()[0].data.end_cause == "client_left_before_first_token"
    assert world.balance().total.picos == 10**12 - WHOLE


def test_another_session_leaves_a_request_alone(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    editor = Editor(sqlite_world)

    anyio.run(lambda: editor.ask_twice("left pane", "right pane", stream=True))

    assert editor.superseded == []


@pytest.mark.parametrize("name", ["", "x" * 129, "tab\tbed", "é"])
def test_a_session_has_a_short_printable_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match="X-Steelyard-Session"):
        read_session({"x-steelyard-session": name})
