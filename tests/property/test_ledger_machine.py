"""The ledger against a reference model: random business, on both databases, every balance exact."""

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from steelyard.access.budget import Budget
from steelyard.access.tenant import Organisation
from steelyard.billing.commands import Booked
from steelyard.billing.correction import correct_balance
from steelyard.billing.credit_line import take_payment, write_off_debt
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.open_holds import mark_old_holds, release_open_hold
from steelyard.billing.pay_out import pay_out_credit
from steelyard.billing.refund import refund_event, undo_refund
from steelyard.billing.top_up import standing_grant_id
from steelyard.errors import Refusal
from steelyard.ids import new_id
from steelyard.ledger.hold import Hold, HoldScope
from steelyard.money import Money
from tests.fund_world import USD, FundWorld, Used
from tests.property.reference_ledger import ReferenceLedger

_numbers = count(1)
AMOUNTS = st.one_of(st.integers(1, 60), st.integers(1, 400))
OURS = ("revenue", "clearing", "promo_expense", "breakage", "write_off", "suspense")


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to the books and to the model, and both have to agree whether it
    could be done."""

    holds = Bundle("holds")
    events = Bundle("events")
    refunds = Bundle("refunds")

    def __init__(self, world: FundWorld) -> None:
        super().__init__()
        self.world = world
        self.model = ReferenceLedger()
        # Whatever an earlier history has left expires before this one begins.
        world.clock.advance(seconds=100 * 24 * 3600)
        expire_grants(world.books, at=world.clock.now())
        world.acme = Organisation(new_id(), f"acme-{next(_numbers)}", USD, world.clock.now())
        world.stores.access.insert_organisation(world.acme)
        world.research = world.department("research", pays_from="organisation")
        self.sales = world.department("sales", pays_from="organisation")
        # A key may move between these while its requests run.
        self.key_at = {"key-a": world.research, "key-b": self.sales}
        self.before = world.balances()
        self.placed: dict[str, tuple[Hold, HoldScope]] = {}
        self.commands: list[tuple[Callable[[Any], Booked], Any]] = []

    @initialize(picos=st.integers(50, 400))
    def begin(self, picos: int) -> None:
        self.top_up(picos)

    @rule(picos=AMOUNTS)
    def top_up(self, picos: int) -> None:
        self.world.top_up(picos)
        self.model.give(self._standing(), picos, kind="paid", now=self._now())

    @rule(picos=AMOUNTS, days=st.integers(1, 60), priority=st.sampled_from([None, 10, 50, 90]))
    def promotional_credit(self, picos: int, days: int, priority: int | None) -> None:
        now = self._now()
        expires = now + timedelta(days=days)
        booked = self.world.give(picos, days=days, priority=priority)
        priority = 50 if priority is None else priority
        grant_id = booked.transaction.reference
        self.model.give(
            grant_id, picos, kind="promotional", now=now, expires=expires, priority=priority
        )

    @rule(picos=AMOUNTS, hours=st.integers(1, 60))
    def paid_money_that_expires(self, picos: int, hours: int) -> None:
        now = self._now()
        expires = now + timedelta(hours=hours)
        booked = self.world.top_up_until(picos, at=expires)
        grant_id = booked.transaction.reference
        self.model.give(grant_id, picos, kind="paid", now=now, expires=expires)

    @rule(
        amount=st.integers(1, 300),
        scope=st.sampled_from(["organisation", "research", "sales", "key-a"]),
        unit=st.sampled_from(["money", "tokens"]),
        period=st.sampled_from(["day", "month", "total"]),
        is_hard=st.booleans(),
    )
    def budget(self, amount: int, scope: str, unit: Any, period: Any, is_hard: bool) -> None:
        kinds = [
            (b["scope_name"], b["unit"], b["period"], b["is_hard"])
            for b in self.model.budgets.values()
        ]
        if len(kinds) >= 4 or (scope, unit, period, is_hard) in kinds:
            return
        acme = self.world.acme
        scope_id = {
            "organisation": acme.id,
            "research": self.world.research.id,
            "sales": self.sales.id,
        }.get(scope, f"{acme.id}-{scope}")
        kind: Any = {"organisation": "organisation", "key-a": "key"}.get(scope, "department")
        budget = Budget(
            new_id(),
            acme.id,
            kind,
            scope_id,
            unit,
            period,
            amount,
            is_hard,
            USD,
            "UTC",
            self._now(),
        )
        self.world.stores.budgets.insert_budget(budget)
        self.model.budgets[budget.id] = {
            "scope": scope_id,
            "scope_name": scope,
            "unit": unit,
            "period": period,
            "amount": amount,
            "is_hard": is_hard,
        }

    @rule(
        target=holds,
        picos=st.one_of(st.just(0), AMOUNTS),
        tokens=st.integers(1, 50),
        key=st.sampled_from(["key-a", "key-b"]),
    )
    def place(self, picos: int, tokens: int, key: str) -> Any:
        acme, department = self.world.acme, self.key_at[key]
        scope = HoldScope(acme.id, department.id, None, f"{acme.id}-{key}", tokens)
        hold = self.world.hold(picos)
        self.placed[hold.id] = hold, scope
        self._place(hold, scope)
        return hold.id

    @rule(hold_id=holds)
    def place_again(self, hold_id: str) -> None:
        """Repeated, whatever has become of it: no second effect, and a decline stays one."""
        self._place(*self.placed[hold_id])

    @rule(hold_id=holds, picos=AMOUNTS, tokens=st.integers(1, 80))
    def grow(self, hold_id: str, picos: int, tokens: int) -> None:
        growing = self.world.desk.grow(
            hold_id, amount=Money(picos, USD), tokens_max=tokens, at=self._now()
        )
        done = _is_done(lambda: growing.result(timeout=30))
        assert done == self.model.grow(hold_id, picos, tokens, self._now())

    @rule(
        target=events, hold_id=consumes(holds), picos=st.integers(0, 120), tokens=st.integers(1, 30)
    )
    def settle(self, hold_id: str, picos: int, tokens: int) -> Any:
        if hold_id not in self.model.holds:
            return multiple()
        hold, _ = self.placed[hold_id]
        # A free hold settles at nothing; another may be passed.
        self.world.settle(Used(hold, picos=picos, tokens=tokens))
        assert self.model.end(hold_id, "settled", picos, tokens)
        return hold_id

    @rule(
        target=events,
        picos=AMOUNTS,
        part=st.integers(1, 5),
        key=st.sampled_from(["key-a", "key-b"]),
    )
    def ask(self, picos: int, part: int, key: str) -> Any:
        """A request from its hold to its event, so that there is much to refund."""
        hold_id = self.place(picos=picos, tokens=3, key=key)
        if hold_id not in self.model.holds:
            return multiple()
        return self.settle(hold_id=hold_id, picos=picos // part, tokens=2)

    @rule(refund_id=consumes(refunds))
    def undo_a_refund_twice(self, refund_id: str) -> None:
        self.undo_refund(refund_id=refund_id)
        self.undo_refund(refund_id=refund_id)

    @rule(hold_id=holds)
    def release(self, hold_id: str) -> None:
        command = self.world.command()
        done = _is_done(lambda: release_open_hold(self.world.books, hold_id, command=command))
        assert done == self.model.end(hold_id, "released")

    @rule(hours=st.integers(0, 40))
    def forgotten_holds_come_to_light(self, hours: int) -> None:
        """Nothing moves: an unresolved hold is still open."""
        before = self._now() - timedelta(hours=hours)
        mark_old_holds(self.world.books, placed_before=before)

    @rule(target=refunds, event_id=events, picos=st.one_of(st.none(), st.integers(1, 60)))
    def refund(self, event_id: str, picos: int | None) -> Any:
        command = self.world.command()
        done = _is_done(
            lambda: refund_event(self.world.books, event_id, picos=picos, command=command)
        )
        assert done == self.model.refund(command.id, event_id, picos)
        return command.id if done else multiple()

    @rule(refund_id=refunds)
    def undo_refund(self, refund_id: str) -> None:
        command = self.world.command()
        done = _is_done(lambda: undo_refund(self.world.books, refund_id, command=command))
        assert done == self.model.undo(refund_id, self._now())

    @rule(picos=st.integers(-80, 80).filter(bool))
    def correct(self, picos: int) -> None:
        done = self._command(correct_balance, picos)
        assert done == self.model.correct(picos, self._now(), standing=self._standing())

    @rule(picos=AMOUNTS)
    def pay_out(self, picos: int) -> None:
        assert self._command(pay_out_credit, picos) == self.model.pay_out(picos, self._now())

    @rule(limit=st.integers(0, 200))
    def credit_limit(self, limit: int) -> None:
        done = _is_done(lambda: self.world.allow_credit(limit))
        assert done == self.model.allow(limit)

    @rule(picos=AMOUNTS)
    def payment(self, picos: int) -> None:
        assert self._command(take_payment, picos) == self.model.pay(picos, "clearing")

    @rule(picos=AMOUNTS)
    def write_off(self, picos: int) -> None:
        assert self._command(write_off_debt, picos) == self.model.pay(picos, "write_off")

    @rule(at=st.integers(0, 1000))
    def repeat_a_command(self, at: int) -> None:
        """A command that was done is done: the same id moves nothing."""
        if self.commands:
            act, command = self.commands[at % len(self.commands)]
            assert act(command).is_repeat

    @rule()
    def sweep(self) -> None:
        expire_grants(self.world.books, at=self._now())
        self.model.sweep(self._now())

    @rule(hours=st.one_of(st.integers(1, 30), st.just(24 * 31)))
    def time_goes_on(self, hours: int) -> None:
        self.world.clock.advance(seconds=3600 * hours)

    @rule(key=st.sampled_from(["key-a", "key-b"]))
    def a_key_is_moved(self, key: str) -> None:
        here = self.key_at[key]
        self.key_at[key] = self.sales if here is self.world.research else self.world.research

    @invariant()
    def every_balance_is_that_of_the_model(self) -> None:
        model, payer_id, now = self.model, self.world.acme.id, self.world.balances()
        expected = {f"prepaid:{payer_id}:{g}:USD": v["left"] for g, v in model.grants.items()}
        expected[f"held:{payer_id}:USD"] = model.held
        expected[f"receivable:{payer_id}:USD"] = -model.owed
        found = {account: picos for account, picos in now.items() if payer_id in account}
        assert {a: p for a, p in found.items() if p} == {a: p for a, p in expected.items() if p}
        for kind in OURS:
            account = f"{kind}:USD"
            moved = now.get(account, 0) - self.before.get(account, 0)
            assert moved == model.ours[kind], account

    @invariant()
    def every_budget_is_that_of_the_model(self) -> None:
        with self.world.stores.audit.snapshot() as snapshot:
            found = {
                key: window
                for key, window in snapshot.budget_windows().items()
                if key[0] in self.model.budgets and window != (0, 0)
            }
        expected = {key: tuple(window) for key, window in self.model.windows.items() if any(window)}
        assert found == expected

    def teardown(self) -> None:
        assert self.world.differences() == []

    def _place(self, hold: Hold, scope: HoldScope) -> None:
        placing = self.world.desk.place(hold, scope)
        done = _is_done(lambda: placing.result(timeout=30))
        expected = self.model.place(
            hold.id, hold.amount.picos, scope.tokens_max, scope.ids, hold.placed_at
        )
        assert done == expected

    def _command(self, act: Any, picos: int) -> bool:
        amount, command, acme = Money(picos, USD), self.world.command(), self.world.acme

        def run(command: Any) -> Booked:
            return act(self.world.books, acme, amount=amount, command=command)

        done = _is_done(lambda: run(command))
        if done:
            self.commands.append((run, command))
        return done

    def _standing(self) -> str:
        return standing_grant_id(self.world.acme.id)

    def _now(self) -> Any:
        return self.world.clock.now()


def _is_done(act: Callable[[], object]) -> bool:
    try:
        act()
    except Refusal:
        return False
    return True


def _run(world: FundWorld, *, examples: int, steps: int) -> None:
    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            report_multiple_bugs=False,
            # A failure is told as it was found: making it small takes many minutes of commits.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_no_business_leads_the_ledger_away_from_the_model(funds: FundWorld) -> None:
    _run(funds, examples=14, steps=30)


@pytest.mark.slow
def test_no_long_business_leads_the_ledger_away_from_the_model(funds: FundWorld) -> None:
    _run(funds, examples=120, steps=60)
