"""Idempotency-Key: answered again, charged once."""

from collections.abc import Generator
from typing import Any

import anyio
import msgspec
import pytest

from steelyard.gateway.answer_store import SqliteAnswerStore
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.idempotency import (
    Idempotency,
    IdempotencyConflict,
    IdempotencyKeyReused,
    read_key,
)
from steelyard.gateway.kept_answers import Place
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.serve import AnsweringClient, serve
from steelyard.gateway.upstreams.scripted import Script
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.ids import new_id
from tests.world import INPUT_PRICE, OUTPUT_PRICE, RecordingClient, World

ONE_ANSWER = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE
BODY = (
    b'{"model":"scripted","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"stream":%s}'
)
STREAMED, WHOLE = BODY % b"true", BODY % b"false"


class Door:
    """A gateway's door for requests that name an Idempotency-Key."""

    def __init__(self, world: World, *, wait_s: float = 20, owner: str = "one") -> None:
        self.world = world
        self.store = SqliteAnswerStore(
            world.settings.data_dir / "answers.db",
            owner=owner,
            clock=world.clock,
            keep_s=100,
            bytes_max=10**6,
        )
        self.idempotency = Idempotency(self.store, wait_s=wait_s)

    async def ask(
        self, body: bytes, *, name: str = "k", key: str = "acme", **client: Any
    ) -> RecordingClient:
        await self.world.prices.snapshot.refresh()
        await self.world.limits.snapshot.refresh()
        await self.world.admission.catalog.refresh()
        gateway = Gateway(self.world.admission, self.world.outbox, self.world.clock)
        asked = msgspec.structs.replace(parse_chat(body), is_repeatable=True)
        asking = RecordingClient(**client)

        async def serve_it(remembering: AnsweringClient) -> None:
            await serve(gateway, asked, self.world.keys[key], remembering, request_id=new_id())

        place = Place(self.world.keys[key].id, name)
        with anyio.fail_after(30):
            await self.idempotency.serve_once(place, asking, serve_it, digest=body.decode())
        return asking


@pytest.fixture
def door(world: World) -> Generator[Door]:
    world.organisation(dollars="1")
    made = Door(world)
    yield made
    made.store.close()


@pytest.mark.parametrize("body", [STREAMED, WHOLE])
def test_the_same_request_gets_the_same_answer_and_is_charged_once(body: bytes, door: Door) -> None:
    async def twice() -> list[RecordingClient]:
        return [await door.ask(body) for _ in range(2)]

    first, second = anyio.run(twice)
    door.world.settle()

    assert (second.events, second.document) == (first.events, first.document)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-steelyard-event-id"] == first.headers["x-steelyard-event-id"]
    assert _charged(door) == ONE_ANSWER
    assert len(door.world.events()) == 1
    assert door.world.differences() == []


def test_another_request_with_the_same_key_is_refused(door: Door) -> None:
    async def ask() -> None:
        await door.ask(WHOLE)
        with pytest.raises(IdempotencyKeyReused):
            await door.ask(STREAMED)

    anyio.run(ask)


def test_another_virtual_key_has_its_own_names(door: Door) -> None:
    door.world.organisation("beta", dollars="1")

    async def ask() -> RecordingClient:
        await door.ask(WHOLE)
        return await door.ask(WHOLE, key="beta")

    assert "idempotent-replayed" not in anyio.run(ask).headers


def test_duplicates_at_the_same_time_wait_for_the_one_answer(door: Door) -> None:
    answers: list[RecordingClient] = []

    async def ask() -> None:
        answers.append(await door.ask(STREAMED))

    async def together() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask)

    anyio.run(together)
    door.world.settle()

    assert len({tuple(answer.events) for answer in answers}) == 1
    assert _charged(door) == ONE_ANSWER


def test_a_duplicate_that_has_waited_long_enough_gets_a_conflict(door: Door) -> None:
    door.world.upstream.script = Script(hangs_after_words=1)
    impatient = Door(door.world, wait_s=0, owner="two")

    async def ask() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: door.ask(STREAMED))
            while not door.world.upstream.bodies:
                await anyio.sleep(0.01)
            with pytest.raises(IdempotencyConflict):
                await impatient.ask(STREAMED)
            tasks.cancel_scope.cancel()

    anyio.run(ask)
    impatient.store.close()


def test_a_client_that_leaves_finds_its_answer_when_it_comes_back(door: Door) -> None:
    async def ask() -> tuple[RecordingClient, RecordingClient]:
        left = await door.ask(STREAMED, stops_reading_after=1)
        return left, await door.ask(STREAMED)

    left, back = anyio.run(ask)
    door.world.settle()

    assert (left.words(), back.words()) == (["hello"], ["hello", "world"])
    assert back.events[-1] == "[DONE]"
    assert [event.data.end_cause for event in door.world.events()] == ["completed"]
    assert _charged(door) == ONE_ANSWER


def test_an_answer_that_failed_is_not_kept(door: Door) -> None:
    async def ask() -> RecordingClient:
        door.world.upstream.script = Script(status=500)
        await door.ask(WHOLE)
        door.world.upstream.script = Script()
        return await door.ask(WHOLE)

    again = anyio.run(ask)

    assert again.status == 200
    assert "idempotent-replayed" not in again.headers


def test_a_gateway_that_was_stopped_in_the_middle_charges_nothing_and_the_key_is_free_again(
    door: Door,
) -> None:
    door.world.upstream.script = Script(hangs_after_words=1)

    async def stop_in_the_middle() -> None:
        with anyio.move_on_after(0.5):
            await door.ask(STREAMED)

    anyio.run(stop_in_the_middle)
    door.world.upstream.script = Script()
    again = anyio.run(door.ask, STREAMED)
    door.world.settle()

    assert again.words() == ["hello", "world"]
    assert _charged(door) == ONE_ANSWER
    assert [e.data.end_cause for e in door.world.events()] == ["gateway_stopped", "completed"]


def test_kept_answers_go_with_their_age_and_running_ones_with_their_gateways_next_start(
    door: Door,
) -> None:
    anyio.run(door.ask, WHOLE)
    place = Place(door.world.keys["acme"].id, "running")
    door.store.begin(place, digest="d")

    door.world.clock.advance(seconds=101)
    successor = Door(door.world)

    assert successor.store.begin(place, digest="d") is None
    assert "idempotent-replayed" not in anyio.run(successor.ask, WHOLE).headers
    successor.store.close()


@pytest.mark.parametrize("given", ["", "x" * 256, "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        read_key({"idempotency-key": given})


def _charged(door: Door) -> int:
    return 10**12 - door.world.balance().total.picos
