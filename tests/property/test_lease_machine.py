"""Gateways that hold from leases, and for runs as a whole: whatever they do and whenever they die,
no money is spent twice, no budget is passed, and in the end nothing is held."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, cast

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from steelyard.access.tenant import Organisation
from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.lease_desk import LeaseDesk
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.errors import Refusal
from steelyard.eventlog.attempt_records import PendingEvent
from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.lease_keeper import LeaseKeeper
from steelyard.gateway.lease_wallet import LeaseWallet
from steelyard.gateway.run_lease import RunLease
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold
from tests.drafts import empty_draft
from tests.fund_world import USD, FundWorld, Used

TTL = timedelta(seconds=10)
GATEWAYS = st.integers(0, 1)
KEYS = st.sampled_from(["key-a", "key-b"])
_numbers = count(1)


@dataclass
class MemoryOutbox:
    """Takes every event at once; the order is all that counts here."""

    source: str

    def append(self, hold: Hold) -> PendingEvent:
        return PendingEvent(empty_draft(hold.id))

    async def durable(self, _event: PendingEvent) -> None:
        await asyncio.sleep(0)


@dataclass
class Gateway:
    """One life of a gateway: its wallet, what runs, and the events that nobody has settled."""

    funds: FundWorld
    number: int
    running: dict[str, tuple[Hold, int]] = field(default_factory=dict[str, tuple[Hold, int]])
    log: deque[Used] = field(default_factory=deque[Used])
    # The last event of each lease that is in the log, settled or not.
    last_events: dict[str, str] = field(default_factory=dict[str, str])
    # By key.
    runs: dict[str, RunLease] = field(default_factory=dict[str, RunLease])

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.outbox = MemoryOutbox(f"gateway:{self.number}:{next(_numbers)}")
        self.desk = LeaseDesk(self.funds.books, ttl=TTL)
        self.wallet = LeaseWallet(TTL)
        self.keeper = LeaseKeeper(
            self.wallet, self.desk, cast("Outbox", self.outbox), self.funds.clock
        )

    def run_of(self, key: str) -> RunLease:
        if key not in self.runs:
            self.runs[key] = RunLease(new_id(), self.keeper)
        return self.runs[key]

    def finish(self, hold: Hold, *, picos: int, tokens: int) -> None:
        event = self.outbox.append(hold)
        if self.wallet.find(hold.lease_id or "") is not None:
            self.wallet.release(hold, LeaseSize(picos, tokens), event=event)
        if hold.lease_id:
            self.last_events[hold.lease_id] = hold.id
        self.log.append(Used(hold, picos, tokens))

    def die(self, *, recorded: set[str]) -> None:
        """Killed: what was not recorded and has no row in the books never was; the rest is closed
        by the next life, which then ends the leases of this one."""
        left = self.desk.left_by(source_prefix=f"gateway:{self.number}:")
        self.start()
        self.runs.clear()
        for hold, _ in self.running.values():
            if hold.lease_id is None or hold.id in recorded:
                self.finish(hold, picos=0, tokens=0)
        self.running.clear()
        for lease in left:
            last = self.last_events.get(lease.id)
            self.desk.end(lease.id, last_event_id=last, at=self.funds.clock.now())


class LeaseMachine(RuleBasedStateMachine):
    """Two gateways, two keys and one payer."""

    def __init__(self, funds: FundWorld) -> None:
        super().__init__()
        self.funds = funds
        funds.clock.advance(seconds=100 * 24 * 3600)
        expire_grants(funds.books, at=funds.clock.now())
        funds.acme = Organisation(new_id(), f"acme-{next(_numbers)}", USD, funds.clock.now())
        funds.stores.access.insert_organisation(funds.acme)
        funds.research = funds.department("research", pays_from="organisation")
        self.gateways = [Gateway(funds, number) for number in range(2)]
        self.given = 0
        self.charged = 0
        self.used_tokens = 0

    @initialize(
        picos=st.integers(500, 40_000), tokens=st.one_of(st.none(), st.integers(300, 9_000))
    )
    def begin(self, picos: int, tokens: int | None) -> None:
        self.top_up(picos)
        self.budget = self.funds.budget(tokens, unit="tokens", period="total") if tokens else None

    @rule(picos=st.integers(1, 20_000))
    def top_up(self, picos: int) -> None:
        self.funds.top_up(picos)
        self.given += picos

    @rule(gateway=GATEWAYS, key=KEYS, picos=st.integers(0, 60), tokens=st.integers(1, 20))
    def ask(self, gateway: int, key: str, picos: int, tokens: int) -> None:
        asked, hold = self.gateways[gateway], self.funds.hold(picos)
        scope = self.funds.scope(tokens=tokens, key_id=f"{self.funds.acme.id}-{key}")
        granted = asked.wallet.grant(hold, scope)
        if granted is None:
            try:
                granted = self.funds.desk.place(hold, scope).result(timeout=30)
            except Refusal:
                return
        asked.running[granted.id] = granted, tokens

    @rule(gateway=GATEWAYS, key=KEYS, picos=st.integers(0, 400), tokens=st.integers(1, 20))
    def ask_in_a_run(self, gateway: int, key: str, picos: int, tokens: int) -> None:
        asked = self.gateways[gateway]
        scope = self.funds.scope(tokens=tokens, key_id=f"{self.funds.acme.id}-{key}")
        granted = None
        with contextlib.suppress(HoldDeclined, BudgetExceeded):
            granted = anyio.run(asked.run_of(key).grant, self.funds.hold(picos), scope)
        if granted is not None:
            asked.running[granted.id] = granted, tokens

    @rule(gateway=GATEWAYS, key=KEYS, picos=st.integers(0, 400), tokens=st.integers(1, 20))
    def ask_side_by_side(self, gateway: int, key: str, picos: int, tokens: int) -> None:
        """Stages that run at the same time grow what is set aside together."""
        asked = self.gateways[gateway]
        scope = self.funds.scope(tokens=tokens, key_id=f"{self.funds.acme.id}-{key}")
        run = asked.run_of(key)

        async def ask() -> None:
            with contextlib.suppress(Refusal):
                granted = await run.grant(self.funds.hold(picos), scope)
                asked.running[granted.id] = granted, tokens

        async def ask_all() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask)

        anyio.run(ask_all)

    @rule(gateway=GATEWAYS, key=KEYS)
    def end_run(self, gateway: int, key: str) -> None:
        self.gateways[gateway].run_of(key).end()
        del self.gateways[gateway].runs[key]

    @rule(gateway=GATEWAYS, key=KEYS, times=st.integers(2, 12), picos=st.integers(0, 40))
    def ask_often(self, gateway: int, key: str, times: int, picos: int) -> None:
        """A busy key: its keeper takes a lease, and what comes then is granted from it."""
        for _ in range(2):
            self.ask(gateway, key, picos, 3)
        self.keep(gateway)
        for _ in range(times):
            self.ask(gateway, key, picos, 3)

    @rule(gateway=GATEWAYS, data=st.data())
    def finish(self, gateway: int, data: st.DataObject) -> None:
        asked = self.gateways[gateway]
        if not asked.running:
            return
        name = data.draw(st.sampled_from(sorted(asked.running)), label="hold")
        hold, tokens = asked.running.pop(name)
        picos = data.draw(st.integers(0, hold.amount.picos), label="charged")
        used = data.draw(st.integers(0, tokens), label="used")
        asked.finish(hold, picos=picos, tokens=used)
        self.charged += picos
        self.used_tokens += used

    @rule(gateway=GATEWAYS, data=st.data())
    def finish_all(self, gateway: int, data: st.DataObject) -> None:
        for _ in range(len(self.gateways[gateway].running)):
            self.finish(gateway, data)

    @rule(gateway=GATEWAYS)
    def keep(self, gateway: int) -> None:
        self.gateways[gateway].keeper._asked_at = -1.0
        anyio.run(self.gateways[gateway].keeper.look)

    @rule(gateway=GATEWAYS)
    def recall(self, gateway: int) -> None:
        self.gateways[gateway].desk.recall(self.funds.acme.id)

    @rule(gateway=GATEWAYS, most=st.integers(1, 10))
    def settle(self, gateway: int, most: int) -> None:
        log = self.gateways[gateway].log
        batch = [log.popleft() for _ in range(min(most, len(log)))]
        if batch:
            self.funds.settle(*batch)

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.funds.clock.advance(seconds=seconds)

    @rule(gateway=GATEWAYS, data=st.data())
    def die(self, gateway: int, data: st.DataObject) -> None:
        running = sorted(self.gateways[gateway].running)
        recorded = data.draw(st.sets(st.sampled_from(running)) if running else st.just(set[str]()))
        self.gateways[gateway].die(recorded=recorded)

    @invariant()
    def nothing_is_spent_twice(self) -> None:
        running = [hold for one in self.gateways for hold, _ in one.running.values()]
        assert self.charged + sum(hold.amount.picos for hold in running) <= self.given
        assert self.funds.available() >= 0
        if self.budget:
            reserved, used = self.funds.standing(self.budget)
            assert reserved + used <= self.budget.amount
        assert self.funds.differences() == []

    @invariant()
    def wallets_agree_with_the_books(self) -> None:
        """What a lease still is in the books, its wallet has free, holds, or has told the log."""
        for gateway in self.gateways:
            in_books = {
                lease.id: lease
                for lease in gateway.desk.left_by(source_prefix=gateway.outbox.source)
            }
            for _, lease in gateway.wallet.leases():
                told = [used for used in gateway.log if used.hold.lease_id == lease.lease.id]
                held = lease.open_holds.values()
                picos = lease.free_picos + sum(size.picos for size in held)
                stands = in_books[lease.lease.id]
                assert stands.amount.picos == picos + sum(used.picos for used in told)
                if lease.free_tokens is not None:
                    tokens = lease.free_tokens + sum(size.tokens for size in held)
                    assert stands.tokens == tokens + sum(used.tokens for used in told)

    def teardown(self) -> None:
        for number, gateway in enumerate(self.gateways):
            for hold, _ in list(gateway.running.values()):
                gateway.finish(hold, picos=0, tokens=0)
            gateway.running.clear()
            anyio.run(gateway.keeper.close)
            while gateway.log:
                self.settle(number, 10)
        if not self.given:
            return
        payer = self.funds.acme.id
        balances = self.funds.balances()
        assert balances.get(f"leased:{payer}:USD", 0) == balances.get(f"held:{payer}:USD", 0) == 0
        assert self.funds.available() == self.given - self.charged
        if self.budget:
            assert self.funds.standing(self.budget) == (0, self.used_tokens)
        assert self.funds.differences() == []


@pytest.mark.slow
def test_no_history_of_leases_spends_money_twice_or_keeps_it(funds: FundWorld) -> None:
    run_state_machine_as_test(
        cast("Any", lambda: LeaseMachine(funds)),
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
