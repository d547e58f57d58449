"""Batches on a clock of the test's own: what 24 hours do not suffice for, and what a failing disk or
a cancelled batch does to a line that may be charged."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from steelyard.entrypoints.openai_api.batch_answers import WINDOW, WINDOW_S
from steelyard.gateway.batches.batch_runner import BatchRunner
from steelyard.gateway.batches.batch_store import BatchStore
from steelyard.gateway.batches.records import BatchesUnavailable, StoredBatch
from steelyard.gateway.upstreams.base import UpstreamAnswer
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.ids import new_id
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

PATH = "/v1/chat/completions"
# Seven tokens in, two words out.
LINE_PICOS = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE


@dataclass
class WatchedUpstream(ScriptedUpstream):
    """Tells a test of each answer before it is given."""

    count: int = 0
    tell: Callable[[int], None] = field(default=lambda count: None)
    may_answer: Callable[[int], bool] = field(default=lambda count: True)

    async def answer(self, path: str, body: bytes, **options: Any) -> UpstreamAnswer:
        self.count += 1
        number = self.count
        self.tell(number)
        while not self.may_answer(number):
            await anyio.sleep(0.02)
        return await super().answer(path, body, **options)


@dataclass(slots=True)
class Batches:
    """One batch over the world's gateway."""

    world: World
    upstream: WatchedUpstream
    store: BatchStore
    batch_id: str = field(default_factory=lambda: f"batch_{new_id()}")

    def runner(self) -> BatchRunner:
        world = self.world
        return BatchRunner(
            store=self.store,
            gateway=world.gateway(),
            clock=world.clock,
            owner="world",
            lines_at_once=1,
            find_key=lambda key_id: world.keys["acme"],
            booked=lambda event_ids: {},
        )

    def put(self, lines: int) -> None:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "?"}]}
        line = {"method": "POST", "url": PATH, "body": body}
        text = [json.dumps({"custom_id": f"line-{n}", **line}) + "\n" for n in range(lines)]
        self.store.path_of("file-in").write_text("".join(text))
        now, made = int(self.world.clock.now().timestamp()), self.batch_id
        batch = StoredBatch(
            id=made,
            key_id=self.world.keys["acme"].id,
            owner="world",
            endpoint=PATH,
            input_file_id="file-in",
            output_file_id=f"{made}-output",
            error_file_id=f"{made}-error",
            completion_window=WINDOW,
            created_at=now,
            expires_at=now + WINDOW_S,
        )
        self.store.put_batch(batch)

    def stored(self) -> StoredBatch:
        return self.store.batch(self.batch_id, key_id=self.world.keys["acme"].id)

    async def work_until(self, is_enough: Callable[[], bool]) -> None:
        """Let the gateway work on it, and stop it as a gateway that ends is stopped."""
        for snapshot in (self.world.prices.snapshot, self.world.limits.snapshot):
            await snapshot.refresh()
        await self.world.admission.catalog.refresh()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.runner().run)
            with anyio.fail_after(60):
                while not is_enough():
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()

    def told(self, name: str) -> list[dict[str, Any]]:
        path: Path = self.store.path_of(f"{self.batch_id}-{name}")
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def opened(world: World, tmp_path: Path) -> Generator[Batches]:
    world.organisation(dollars="1")
    upstream = world.upstream = WatchedUpstream()
    world.stop_gateway()
    world.start_gateway()
    store = BatchStore(tmp_path / "files")
    yield Batches(world, upstream, store)
    store.close()


def test_lines_that_24_hours_do_not_suffice_for_end_as_expired(
    sqlite_world: World, tmp_path: Path
) -> None:
    with opened(sqlite_world, tmp_path) as batches:
        batches.put(10)

        def wait_a_day(count: int) -> None:
            if count == 4:
                sqlite_world.clock.advance(seconds=WINDOW_S)

        batches.upstream.tell = wait_a_day
        anyio.run(batches.work_until, lambda: batches.stored().is_over)
        over = batches.stored()
        answered, expired = batches.told("output"), batches.told("error")

    assert over.status == "expired"
    assert (over.completed, over.failed) == (len(answered), len(expired))
    assert over.completed + over.failed == 10
    # The line that was with the model's server, and none that was not asked.
    assert {line["custom_id"] for line in answered} == {f"line-{n}" for n in range(4)}
    assert {line["error"]["code"] for line in expired} == {"batch_expired"}
    assert over.as_document()["expired_at"] == over.expires_at
    sqlite_world.settle()
    assert _spent(sqlite_world) == 4 * LINE_PICOS


def test_a_batch_that_is_stopped_and_taken_up_again_charges_each_line_once(
    sqlite_world: World, tmp_path: Path
) -> None:
    with opened(sqlite_world, tmp_path) as batches:
        batches.put(30)
        for stop_after in (7, 15, 24):
            anyio.run(
                batches.work_until, lambda enough=stop_after: batches.upstream.count >= enough
            )
        anyio.run(batches.work_until, lambda: batches.stored().is_over)
        over, answered = batches.stored(), batches.told("output")

    assert (over.status, over.completed, over.failed) == ("completed", 30, 0)
    assert sorted(line["custom_id"] for line in answered) == sorted(f"line-{n}" for n in range(30))
    sqlite_world.settle()
    charged = [event for event in sqlite_world.events() if event.data.amount != "0"]
    assert len(charged) == 30
    assert _spent(sqlite_world) == 30 * LINE_PICOS


@pytest.mark.slow
def test_counts_that_cannot_be_kept_stop_no_line(
    sqlite_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(sqlite_world, tmp_path) as batches:
        batches.put(5)
        put, begun, refused = batches.store.put_batch, list[int](), list[int]()

        def put_unless_counting(batch: StoredBatch) -> None:
            # The first of a life says that it has begun; the others count.
            if batch.status == "in_progress" and batch.life in begun:
                refused.append(batch.life)
                raise BatchesUnavailable("the disk is full")
            begun.append(batch.life)
            put(batch)

        batches.upstream.may_answer = lambda count: count < 4 or len(refused) > 1
        monkeypatch.setattr(batches.store, "put_batch", put_unless_counting)
        anyio.run(batches.work_until, lambda: batches.stored().is_over)
        over = batches.stored()

    assert len(refused) > 1
    assert (over.status, over.completed, over.life) == ("completed", 5, 1)
    sqlite_world.settle()
    assert _spent(sqlite_world) == 5 * LINE_PICOS


def _spent(world: World) -> int:
    return 10**12 - world.balance().available.picos
