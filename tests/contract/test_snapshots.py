"""Copies of the books in memory: read again when something has changed, and no oftener."""

import anyio
import anyio.lowlevel

from steelyard.access.limits import LimitSet
from steelyard.gateway.snapshot import Snapshot
from tests.world import World


class Books:
    """Something slow to read, which counts how often it is looked at."""

    def __init__(self) -> None:
        self.number = 1
        self.looks = 0

    def revision(self) -> int:
        self.looks += 1
        return self.number


def test_callers_that_come_together_share_one_look() -> None:
    books = Books()
    snapshot = Snapshot[int](lambda: books.number, books.revision, 1.0)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(snapshot.refresh)

    anyio.run(run)

    assert books.looks <= 2


def test_a_look_that_began_before_the_call_is_not_enough() -> None:
    books = Books()
    snapshot = Snapshot[int](lambda: books.number, books.revision, 1.0)

    async def run() -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(snapshot.refresh)
            await anyio.lowlevel.checkpoint()
            books.number = 2
            await snapshot.refresh()
        return snapshot.copy

    assert anyio.run(run) == 2


def test_limits_that_were_found_are_looked_up_anew_after_a_change(sqlite_world: World) -> None:
    world = sqlite_world
    world.organisation(dollars="1")
    key = world.keys["acme"]
    world.chat()
    before = world.limits.over(key, model="scripted")
    again = world.limits.over(key, model="scripted")

    world.stores.access.set_limits("key", key.id, LimitSet(input_tokens_max=7))
    anyio.run(world.limits.snapshot.refresh)

    assert again is before
    assert before.input_tokens_max == 4096
    assert world.limits.over(key, model="scripted").input_tokens_max == 7
