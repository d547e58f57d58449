"""What a document sets aside as a whole, is charged part by part, and gives back."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from steelyard.gateway.documents.runner import Documents
from steelyard.gateway.documents.store import DocumentStore, StoredPart, Wanted
from steelyard.gateway.run_lease import RunLease
from steelyard.gateway.upstreams.base import UpstreamAnswer
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money, read_decimal
from tests.world import INPUT_PRICE, NOW, OUTPUT_PRICE, USD, World

# Seven tokens of prompt and two of answer, as the upstream counts.
CALL = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE
PARTS = 5
CENT = 10**10


class Greedy(ScriptedUpstream):
    """While it answers the first part, the same key asks for more than is left beside the document."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.refused: list[int | None] = []

    async def answer(self, *given: Any, **named: Any) -> UpstreamAnswer:
        if not self.refused:
            self.refused.append(None)
            asked = await self.world.chat_async("acme", {"max_tokens": 8_000})
            self.refused[0] = asked.status
        return await super().answer(*given, **named)


def _documents(world: World, folder: Path) -> Documents:
    store = DocumentStore(folder / "documents.db", owner="world")
    return Documents(store, world.gateway(), world.stores.access.find_key, keep_s=3600)


def _run(world: World, folder: Path, *, cents: int) -> list[StoredPart]:
    """Run a document of five parts, for which so much is set aside; its parts, as they are then."""
    documents, document_id = _documents(world, folder), new_id()
    key = world.keys["acme"]
    wanted = Wanted("scripted", "summary", "Say what is in it.", "Put together.", 20, PARTS)
    documents.store.add(
        document_id,
        key_id=key.id,
        at="2026-11-24T12:00:00.000000Z",
        wanted=wanted,
        sources=[f"part {number}" for number in range(PARTS)],
    )

    async def run() -> None:
        await world.prices.snapshot.refresh()
        await world.limits.snapshot.refresh()
        await world.admission.catalog.refresh()
        run_lease = await _set_aside(world, document_id, cents=cents)
        progress = documents.start(document_id, run_lease)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(documents.keep)
            with anyio.fail_after(60):
                _: list[Any] = [event async for event in progress.follow()]
            tasks.cancel_scope.cancel()

    anyio.run(run)
    world.settle()
    world.keep_leases()
    return documents.store.parts(document_id)


async def _set_aside(world: World, document_id: str, *, cents: int) -> RunLease:
    department = world.keys["acme"].department
    amount = Money(cents * CENT, USD)
    hold = Hold(document_id, department.payer_id, amount, world.outbox.source, NOW, "{}")
    scope = HoldScope(
        department.organisation.id, department.id, None, world.keys["acme"].id, tokens_max=10_000
    )
    run_lease = world.holding.lease_for(document_id)
    await world.holding.set_aside(hold, scope, run_lease=run_lease)
    return run_lease


@pytest.mark.parametrize("cents", [1, 50])
def test_a_document_is_charged_by_part_out_of_one_lease(
    cents: int, world: World, tmp_path: Path
) -> None:
    world.organisation(dollars="1")

    parts = _run(world, tmp_path, cents=cents)

    events = world.events()
    assert [part.state for part in parts] == ["charged"] * (PARTS + 1)
    assert {part.event_id for part in parts} == {event.id for event in events}
    assert sum(read_decimal(part.cost or "0") for part in parts) == (PARTS + 1) * CALL
    assert len({event.data.lease_id for event in events} - {None}) == 1
    balance = world.balance()
    assert balance.held.picos == 0
    assert balance.available.picos == 100 * CENT - (PARTS + 1) * CALL
    assert world.differences() == []


def test_what_a_document_has_set_aside_cannot_be_spent_beside_it(
    world: World, tmp_path: Path
) -> None:
    world.organisation(dollars="0.55")
    greedy = world.upstream = Greedy(world)
    world.stop_gateway()
    world.start_gateway()

    parts = _run(world, tmp_path, cents=50)

    assert greedy.refused == [402]
    assert [part.state for part in parts] == ["charged"] * (PARTS + 1)


def test_an_old_document_is_deleted_with_its_parts_unless_it_runs(
    world: World, tmp_path: Path
) -> None:
    world.organisation(dollars="1")
    documents = _documents(world, tmp_path)
    store, key_id = documents.store, world.keys["acme"].id
    wanted = Wanted("scripted", "summary", "Say what is in it.", "Put together.", 20, 1)
    hour = "2026-11-24T{:02}:00:00.000000Z"
    now = world.clock.now()
    assert (now.hour, documents.keep_s) == (12, 3600)
    begun = {"old": hour.format(10), "failed": hour.format(10), "running": hour.format(10)}
    for document_id, at in (begun | {"young": hour.format(12)}).items():
        store.add(document_id, key_id=key_id, at=at, wanted=wanted, sources=["text"])
        if document_id != "running":
            store.end(document_id, "failed" if document_id == "failed" else "completed")

    async def keep_until_pruned() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(documents.keep)
            with anyio.fail_after(60):
                while store.find("old") is not None:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    anyio.run(keep_until_pruned)

    left = [name for name in (*begun, "young") if store.find(name) is not None]
    assert left == ["running", "young"]
    assert [name for name in (*begun, "young") if store.parts(name)] == left
    assert world.events() == []
