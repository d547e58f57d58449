"""A key that moves while it is used: what was admitted stays where it was admitted. And statements
of a day on which the clocks change."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from steelyard.access.key_move import moved_key
from steelyard.access.tenant import Department
from steelyard.billing.billing_period import read_month
from steelyard.billing.statement import make_statement
from steelyard.gateway.upstreams.base import UpstreamAnswer
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

ANSWER = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE


@dataclass(slots=True)
class InterruptedUpstream(ScriptedUpstream):
    """Something happens while it answers."""

    meanwhile: Callable[[], None] = lambda: None

    async def answer(
        self, path: str, body: bytes, *, request_id: str, tenant: str, content_type: str
    ) -> UpstreamAnswer:
        self.meanwhile()
        return await ScriptedUpstream.answer(
            self, path, body, request_id=request_id, tenant=tenant, content_type=content_type
        )


def test_a_key_moved_during_a_request_is_billed_where_the_request_was_admitted(
    world: World,
) -> None:
    acme = world.organisation(dollars="0")
    old, new = world.department(acme, "old"), world.department(acme, "new")
    for department in (old, new):
        world.top_up(department, "1")

    def move() -> None:
        world.keys["old"] = moved_key(world.keys["old"], department=new, project=None)
        world.stores.access.move_key(world.keys["old"])

    world.stop_gateway()
    world.upstream = InterruptedUpstream(meanwhile=move)
    world.start_gateway()
    for _ in range(2):
        assert world.chat("old").error is None
    world.settle()

    first, second = world.events()
    assert (first.data.department_id, first.data.payer_id) == (old.id, old.id)
    assert (second.data.department_id, second.data.payer_id) == (new.id, new.id)
    assert [_spent(world, department) for department in (old, new)] == [ANSWER, ANSWER]
    assert world.differences() == []


def test_months_around_a_change_of_the_clocks_share_no_request_and_lose_none(world: World) -> None:
    acme = world.organisation(dollars="1")
    # In Berlin, October 2027 begins in summer (UTC+2) and ends in winter (UTC+1).
    starts = datetime(2027, 9, 30, 22, tzinfo=UTC), datetime(2027, 10, 31, 23, tzinfo=UTC)
    for start in starts:
        for moment in (start - timedelta(microseconds=1), start):
            world.clock.moment = moment
            assert world.chat().error is None
    world.settle()

    requests: list[int] = []
    for month in ("2027-09", "2027-10", "2027-11"):
        period = read_month(month, time_zone="Europe/Berlin")
        with world.stores.reports.snapshot() as snapshot:
            requests.append(make_statement(snapshot, acme, period=period).requests)

    october = read_month("2027-10", time_zone="Europe/Berlin")
    assert requests == [1, 2, 1]
    assert october.end - october.start == timedelta(days=31, hours=1)


def _spent(world: World, department: Department) -> int:
    return 10**12 - world.balance(department.path).total.picos
