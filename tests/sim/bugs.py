"""Five bugs that products of this kind have, to be switched on: the simulator must find each.

Each breaks one rule of the product and leaves the rest as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import anyio.lowlevel
import pytest
from sqlalchemy import update

from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.lease_in_hand import LeaseInHand
from steelyard.ids import new_id
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import Transaction
from steelyard.storage import schema
from steelyard.storage.books import SqlBooksUnit
from tests.sim.faulty_books import FaultyBooks
from tests.sim.plan import Faults, Plan

Patch = pytest.MonkeyPatch


class PostsFirst(SqlBooksUnit):
    """Money is posted in a transaction of its own, before the position says so."""

    _move: Callable[[], None] | None = None

    def move_position(self, log_id: str, *, before: int, after: int) -> None:
        self._move = lambda: SqlBooksUnit.move_position(self, log_id, before=before, after=after)

    def post(self, transactions: Sequence[Transaction]) -> None:
        if self._move is None:
            super().post(transactions)
            return
        super().post([replace(one, id=f"{one.id}/{new_id()}") for one in transactions])
        self.connection.exec_driver_sql("COMMIT")
        self.connection.exec_driver_sql("BEGIN IMMEDIATE")

    def insert_events(self, *given: Any, **named: Any) -> None:
        assert self._move is not None, "events come with a position"
        self._move()
        super().insert_events(*given, **named)


class NeverRefusesZombies(SqlBooksUnit):
    """The position is set, whatever it was."""

    def move_position(self, log_id: str, *, before: int, after: int) -> None:
        del before
        table = schema.log_positions
        query = update(table).where(table.c.log_id == log_id).values(position=after)
        if not self.connection.execute(query).rowcount:
            super().move_position(log_id, before=0, after=after)


class ForgetsHolds(SqlBooksUnit):
    """Recovery is not told of holds that the outbox does not know."""

    def open_hold_picos(self, *, source_prefix: str) -> dict[str, int]:
        del source_prefix
        return {}


def _post_twice(patch: Patch) -> None:
    patch.setattr(FaultyBooks, "unit_class", PostsFirst)


def _leak_holds(patch: Patch) -> None:
    patch.setattr(FaultyBooks, "unit_class", ForgetsHolds)


def _lose_closes(patch: Patch) -> None:
    async def durable(_outbox: Outbox, _pending: object, *, timeout_s: float | None = None) -> None:
        """The client sees the end before the disk has it."""
        await anyio.lowlevel.checkpoint()

    patch.setattr(Outbox, "durable", durable)


def _over_grant(patch: Patch) -> None:
    real = LeaseInHand.of

    def of(lease: Lease) -> LeaseInHand:
        """Twice what was leased may be held."""
        in_hand = real(lease)
        in_hand.free_picos *= 2
        return in_hand

    patch.setattr(LeaseInHand, "of", of)


def _write_as_zombie(patch: Patch) -> None:
    patch.setattr(FaultyBooks, "unit_class", NeverRefusesZombies)


@dataclass(frozen=True, slots=True)
class Bug:
    """How a rule is broken, and what makes it likely that somebody is hurt by that."""

    switch_on: Callable[[Patch], None]
    provoke: Callable[[Plan], Plan]


def _as_drawn(plan: Plan) -> Plan:
    return plan


def _with_failing_books(plan: Plan) -> Plan:
    return replace(plan, faults=replace(plan.faults, books_refuse=0.1))


def _with_torn_writes(plan: Plan) -> Plan:
    """In the middle of writes, and without leases."""
    return replace(plan, faults=replace(plan.faults, disk_tears=0.15), lease_ttl_s=0.0)


def _with_used_up_leases(plan: Plan) -> Plan:
    return replace(plan.as_rush(), gateways=1, faults=Faults())


BUGS: Final[Mapping[str, Bug]] = MappingProxyType(
    {
        "double post": Bug(_post_twice, _with_failing_books),
        "leaked hold": Bug(_leak_holds, _with_torn_writes),
        "lost close": Bug(_lose_closes, _with_torn_writes),
        "lease over-grant": Bug(_over_grant, _with_used_up_leases),
        "zombie write": Bug(_write_as_zombie, _as_drawn),
    }
)


def draw_plan(seed: int, *, bug: str | None = None) -> Plan:
    """What a seed decides; with a bug, a world in which it shows sooner."""
    plan = Plan.drawn(seed)
    return plan if bug is None else replace(BUGS[bug].provoke(plan), bug=bug)
