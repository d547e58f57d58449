"""Copies of the books in memory: read again when something has changed, and no oftener."""

import threading

import anyio
import anyio.lowlevel

from steelyard.access.limits import LimitSet
from steelyard.gateway.snapshot import Snapshot, SnapshotWatch
from steelyard.storage.database import BooksUnavailable
from tests.world import World


class Books:
    """Something slow to read, which counts how often it is looked at."""

    def __init__(self) -> None:
        self.number: int = 1
        self.looks = 0

    def change(self, number: int) -> None:
        self.number = number

    def revision(self) -> int:
        self.looks += 1
        return self.number


async def until(snapshot: Snapshot[int], number: int) -> None:
    while snapshot.copy != number:
        await anyio.sleep(0.001)


def test_callers_that_come_together_share_one_look() -> None:
    books = Books()
    snapshot = Snapshot[int](lambda: books.number, books.revision)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(snapshot.refresh)

    anyio.run(run)

    assert books.looks <= 2


def test_a_look_that_began_before_the_call_is_not_enough() -> None:
    books = Books()
    snapshot = Snapshot[int](lambda: books.number, books.revision)

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


def test_one_look_finds_all_that_are_behind_and_reads_nothing_else() -> None:
    books, prices = Books(), Books()
    loaded: list[str] = []

    def load(name: str) -> int:
        loaded.append(name)
        return books.number

    keys = Snapshot[int](lambda: load("keys"), books.revision)
    limits = Snapshot[int](lambda: load("limits"), books.revision)
    others = Snapshot[int](lambda: load("prices"), prices.revision)

    async def run() -> None:
        for snapshot in (keys, limits, others):
            await snapshot.refresh()
        loaded.clear()
        books.number, books.looks, prices.looks = 2, 0, 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SnapshotWatch((keys, limits, others), every_s=0.01).watch)
            while keys.copy != 2 or limits.copy != 2:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()

    anyio.run(run)

    assert sorted(loaded) == ["keys", "limits"]
    assert prices.looks >= 1


def test_one_that_takes_long_keeps_no_other_from_being_read() -> None:
    books = Books()
    release = threading.Event()

    def load_slowly() -> int:
        assert books.number == 1 or release.wait(60)
        return books.number

    slow = Snapshot[int](load_slowly, books.revision)
    quick = Snapshot[int](lambda: books.number, books.revision)

    async def run() -> None:
        await slow.refresh()
        await quick.refresh()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SnapshotWatch((slow, quick), every_s=0.01).watch)
            for number in (2, 3):
                books.change(number)
                await until(quick, number)
            assert slow.copy == 1
            release.set()
            await until(slow, 3)
            tasks.cancel_scope.cancel()

    anyio.run(run)


def test_a_watch_goes_on_after_the_books_were_away() -> None:
    books = Books()
    is_away = True

    def revision() -> int:
        if is_away and books.number > 1:
            raise BooksUnavailable("away")
        return books.revision()

    snapshot = Snapshot[int](lambda: books.number, revision)

    async def run() -> None:
        nonlocal is_away
        await snapshot.refresh()
        books.change(2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SnapshotWatch((snapshot,), every_s=0.01).watch)
            await anyio.sleep(0.05)
            assert snapshot.copy == 1
            is_away = False
            await until(snapshot, 2)
            tasks.cancel_scope.cancel()

    anyio.run(run)
