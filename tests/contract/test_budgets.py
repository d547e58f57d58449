"""What budgets promise, on every database."""

from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from steelyard.access.store import BudgetNotFound, BudgetTaken
from steelyard.billing.budgets import BudgetExceeded
from tests.fund_world import FundWorld, Used


def test_a_hard_budget_counts_what_is_reserved_and_what_is_used(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100)
    funds.settle(Used(funds.place(60), picos=30))
    funds.place(50)

    with pytest.raises(BudgetExceeded, match="does not cover") as exceeded:
        funds.place(21)

    assert (exceeded.value.unit, exceeded.value.left) == ("money", 20)
    message = str(exceeded.value)
    for part in (
        "organisation's budget of 0.0000000001 USD per month",
        "used 0.00000000003 USD",
        "reserved 0.00000000005 USD",
        "renews at 2026-12-01T00:00:00.000000Z",
    ):
        assert part in message
    assert funds.standing(budget) == (50, 30)
    assert funds.available() == 1_000 - 30 - 50
    assert funds.differences() == []


def test_tokens_are_counted_apart_from_money(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100, unit="tokens", period="day")
    hold = funds.place(1, tokens=60)

    with pytest.raises(BudgetExceeded, match="100 tokens per day"):
        funds.place(1, tokens=41)
    funds.settle(Used(hold, picos=0, tokens=10))

    assert funds.standing(budget) == (0, 10)
    assert funds.place(1, tokens=90).budget_draws[0].amount == 90


def test_every_budget_above_a_key_is_reserved_together(funds: FundWorld) -> None:
    funds.top_up(1_000)
    whole, mine, other = (
        funds.budget(100),
        funds.budget(50, scope_id="mine"),
        funds.budget(90, scope_id="other"),
    )

    funds.place(50, key_id="mine")
    with pytest.raises(BudgetExceeded, match="key's budget"):
        funds.place(1, key_id="mine")
    with pytest.raises(BudgetExceeded, match="organisation's budget"):
        funds.place(51, key_id="other")
    funds.place(50, key_id="other")

    assert [funds.standing(b) for b in (whole, mine, other)] == [(100, 0), (50, 0), (50, 0)]
    assert funds.available() == 900


def test_a_soft_budget_counts_and_never_refuses(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(10, is_hard=False)

    funds.settle(Used(funds.place(60), picos=60))

    assert funds.standing(budget) == (0, 60)


def test_a_free_request_needs_no_room_in_a_budget_of_money(funds: FundWorld) -> None:
    funds.top_up(1_000)
    funds.budget(10)
    funds.settle(Used(funds.place(10), picos=10))

    assert funds.place(0).amount.picos == 0
    with pytest.raises(BudgetExceeded):
        funds.place(1)


def test_a_new_window_begins_at_midnight_of_the_organisation(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100, period="day")
    funds.place(100)
    funds.clock.moment = datetime(2026, 11, 24, 23, 59, 59, 999_999, tzinfo=UTC)
    with pytest.raises(BudgetExceeded, match="renews at 2026-11-25T00:00:00"):
        funds.place(1)

    funds.clock.moment = datetime(2026, 11, 25, tzinfo=UTC)

    assert funds.place(100).budget_draws[0].window == "2026-11-25"
    assert funds.standing(budget) == (100, 0)


def test_a_hold_is_used_in_the_window_of_its_admission(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100, period="day")
    hold = funds.place(100)
    funds.clock.moment = datetime(2026, 11, 25, tzinfo=UTC)

    funds.settle(Used(hold, picos=70))

    assert funds.standing(budget) == (0, 0)
    funds.clock.moment = datetime(2026, 11, 24, tzinfo=UTC)
    assert funds.standing(budget) == (0, 70)


def test_growth_needs_room_in_the_same_budgets(funds: FundWorld) -> None:
    funds.top_up(1_000)
    money, tokens = funds.budget(100), funds.budget(30, unit="tokens")
    hold = funds.place(60, tokens=10)

    grown = funds.grow(hold, 100, tokens=20)
    with pytest.raises(BudgetExceeded):
        funds.grow(hold, 101, tokens=20)
    with pytest.raises(BudgetExceeded):
        funds.grow(hold, 100, tokens=31)

    assert [draw.amount for draw in grown.budget_draws] == [100, 20]
    assert (funds.standing(money), funds.standing(tokens)) == ((100, 0), (20, 0))
    assert funds.differences() == []


def test_a_hold_that_a_budget_declined_stays_declined(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(10)
    hold = funds.hold(11)
    with pytest.raises(BudgetExceeded):
        funds.desk.place(hold, funds.scope()).result(timeout=30)
    funds.stores.budgets.end_budget(budget.id, at=funds.clock.now())

    with pytest.raises(BudgetExceeded) as again:
        funds.desk.place(hold, funds.scope()).result(timeout=30)

    assert (again.value.unit, again.value.left) == ("money", 10)
    assert "does not cover" in str(again.value)


def test_an_alert_is_raised_once_for_each_threshold_and_window(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100)

    with capture_logs() as logs:
        for picos in (49, 1, 10, 30, 9, 1):
            funds.settle(Used(funds.place(picos), picos=picos))

    passed = [entry for entry in logs if entry["event"] == "budget.threshold_passed"]
    assert [entry["percent"] for entry in passed] == [50, 80, 100]
    assert passed[0]["budget_id"] == budget.id
    standing = funds.stores.budgets.standings(at=funds.clock.now())[0]
    assert standing.alerts == (50, 80, 100)


def test_a_second_budget_of_the_same_kind_is_refused(funds: FundWorld) -> None:
    budget = funds.budget(100)
    with pytest.raises(BudgetTaken, match=budget.id):
        funds.budget(200)
    funds.budget(100, is_hard=False)
    funds.budget(100, period="day")
    funds.budget(100, unit="tokens")

    funds.stores.budgets.end_budget(budget.id, at=funds.clock.now())
    funds.budget(200)

    assert len(funds.stores.budgets.standings(at=funds.clock.now())) == 4
    with pytest.raises(BudgetNotFound):
        funds.stores.budgets.end_budget("no-such-budget", at=funds.clock.now())


def test_an_ended_budget_refuses_nothing_and_is_settled_to_the_end(funds: FundWorld) -> None:
    funds.top_up(1_000)
    budget = funds.budget(100)
    hold = funds.place(100)
    funds.stores.budgets.end_budget(budget.id, at=funds.clock.now())

    funds.place(500)
    funds.grow(hold, 150)
    funds.settle(Used(hold, picos=120))

    assert funds.differences() == []
