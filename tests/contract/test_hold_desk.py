"""What the hold desk promises, on every database."""

import threading
from datetime import timedelta

import msgspec
import pytest
from structlog.testing import capture_logs

from steelyard.billing.budgets import BudgetExceeded
from steelyard.billing.grant_expiry import expire_grants
from steelyard.billing.hold_decisions import HoldDeclined, HoldEnded, HoldIdTaken, HoldNotFound
from steelyard.billing.hold_desk import HoldDesk
from steelyard.billing.open_holds import list_open_holds, mark_old_holds, release_open_hold
from steelyard.ledger.hold import CREDIT_LINE
from steelyard.money import Money
from tests.fund_world import USD, FundWorld, Used


def test_the_credit_that_expires_first_is_held_first_and_the_credit_line_last(
    funds: FundWorld,
) -> None:
    funds.top_up(50)
    funds.give(30, days=9)
    funds.give(20, days=2)
    funds.allow_credit(40)

    hold = funds.place(110)

    assert [draw.picos for draw in hold.draws] == [20, 30, 50, 10]
    assert hold.draws[-1].grant_id == CREDIT_LINE
    assert (funds.available(), funds.funds().held, funds.funds().owed) == (30, 110, 10)
    assert funds.differences() == []


def test_a_hold_above_what_is_available_is_declined_with_what_is(funds: FundWorld) -> None:
    funds.top_up(50)
    funds.allow_credit(5)

    with pytest.raises(HoldDeclined, match=r"0\.000000000055 USD available") as declined:
        funds.place(56)

    assert declined.value.available == Money(55, USD)
    assert funds.available() == 55
    assert funds.place(55).amount.picos == 55


def test_expired_credit_cannot_be_held(funds: FundWorld) -> None:
    funds.give(30, days=1)
    funds.clock.advance(seconds=86_400)

    with pytest.raises(HoldDeclined, match="0 USD available"):
        funds.place(1)


def test_the_same_hold_again_is_granted_again_and_held_once(funds: FundWorld) -> None:
    funds.top_up(50)
    hold = funds.hold(30)

    first = funds.desk.place(hold, funds.scope()).result(timeout=30)
    again = [funds.desk.place(hold, funds.scope()) for _ in range(5)]

    assert {answer.result(timeout=30) for answer in again} == {first}
    assert funds.funds().held == 30


def test_a_declined_hold_stays_declined_when_money_has_come(funds: FundWorld) -> None:
    hold = funds.hold(30)
    with pytest.raises(HoldDeclined):
        funds.desk.place(hold, funds.scope()).result(timeout=30)
    funds.top_up(50)

    with pytest.raises(HoldDeclined) as declined:
        funds.desk.place(hold, funds.scope()).result(timeout=30)

    assert declined.value.available == Money(0, USD)
    assert funds.available() == 50


def test_a_hold_that_has_ended_is_not_placed_again(funds: FundWorld) -> None:
    funds.top_up(50)
    settled, released = funds.place(30), funds.place(20)
    funds.settle(Used(settled, picos=30))
    release_open_hold(funds.books, released.id, command=funds.command())

    for hold, end in ((settled, "settled"), (released, "released")):
        with pytest.raises(HoldEnded, match=end):
            funds.desk.place(hold, funds.scope()).result(timeout=30)
        with pytest.raises(HoldEnded, match=end):
            funds.grow(hold, 40)

    assert (funds.available(), funds.funds().held) == (20, 0)


def test_an_id_belongs_to_one_payer(funds: FundWorld) -> None:
    funds.top_up(50)
    other = funds.department("other")
    funds.top_up(50, tenant=other)
    hold = funds.place(30)
    thief = msgspec.structs.replace(funds.hold(30, payer_id=other.id), id=hold.id)

    with pytest.raises(HoldIdTaken):
        funds.desk.place(thief, funds.scope()).result(timeout=30)

    assert funds.funds(other.id).held == 0


def test_a_hold_grows_by_what_is_missing_and_once(funds: FundWorld) -> None:
    funds.give(30)
    funds.top_up(50)
    hold = funds.place(20)

    grown = funds.grow(hold, 60)
    again = funds.grow(hold, 60)

    assert grown == again
    assert (grown.amount.picos, [draw.picos for draw in grown.draws]) == (60, [20, 10, 30])
    assert (funds.available(), funds.funds().held) == (20, 60)
    funds.settle(Used(hold, picos=45))
    assert [balance.picos for balance in funds.funds().grants] == [35]
    assert funds.differences() == []


def test_a_growth_that_is_declined_leaves_the_hold_as_it_was(funds: FundWorld) -> None:
    funds.top_up(50)
    hold = funds.place(20)

    with pytest.raises(HoldDeclined, match=r"0\.00000000003 USD"):
        funds.grow(hold, 51)
    with pytest.raises(HoldNotFound):
        funds.grow(funds.hold(1), 5)

    assert (funds.available(), funds.funds().held) == (30, 20)
    assert funds.grow(hold, 50).amount.picos == 50


def test_holds_of_many_payers_are_granted_in_one_batch(funds: FundWorld) -> None:
    payers = [funds.department(f"team-{number}") for number in range(5)]
    for payer in payers:
        funds.top_up(10, tenant=payer)

    asked = [
        funds.desk.place(funds.hold(6, payer_id=payer.id), funds.scope())
        for payer in payers
        for _ in range(2)
    ]
    answers = [placing.exception(timeout=30) for placing in asked]

    assert [type(answer) for answer in answers] == [type(None), HoldDeclined] * 5
    assert funds.differences() == []


def test_concurrent_holds_never_pass_the_last_pico(funds: FundWorld) -> None:
    funds.top_up(10_000)
    funds.give(7)
    funds.allow_credit(3)

    granted = _ask_from_many_threads(funds, picos=30)

    assert granted == 10_010 // 30
    assert funds.available() == 10_010 % 30
    assert funds.funds().held == granted * 30
    assert funds.differences() == []


def test_concurrent_holds_never_pass_the_last_token_of_a_budget(funds: FundWorld) -> None:
    funds.top_up(1_000_000)
    budget = funds.budget(1_000, unit="tokens")

    granted = _ask_from_many_threads(funds, picos=1, tokens=7)

    assert granted == 1_000 // 7
    assert funds.standing(budget) == (granted * 7, 0)
    assert funds.differences() == []


def _ask_from_many_threads(funds: FundWorld, *, picos: int, tokens: int = 1) -> int:
    """So many holds were granted, by three desks that were asked by nine threads."""
    desks = [HoldDesk(funds.books) for _ in range(3)]
    granted: list[str] = []
    failed: list[Exception] = []

    def ask(desk: HoldDesk) -> None:
        for _ in range(60):
            hold = funds.hold(picos)
            try:
                desk.place(hold, funds.scope(tokens=tokens)).result(timeout=60)
            except (HoldDeclined, BudgetExceeded):
                continue
            except Exception as error:
                failed.append(error)
                return
            granted.append(hold.id)

    threads = [threading.Thread(target=ask, args=(desk,)) for desk in desks for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for desk in desks:
        desk.close()
    assert failed == []
    return len(granted)


def test_settling_growing_and_topping_up_at_once_never_block_each_other(
    funds: FundWorld,
) -> None:
    funds.top_up(1_000_000)
    funds.budget(10_000_000)
    failed: list[Exception] = []

    def use() -> None:
        try:
            for _ in range(15):
                hold = funds.place(10)
                funds.grow(hold, 20)
                with lock:
                    funds.settle(Used(hold, picos=5))
        except Exception as error:
            failed.append(error)

    def pay_in() -> None:
        try:
            for _ in range(15):
                funds.top_up(1)
                funds.give(1, days=30)
        except Exception as error:
            failed.append(error)

    lock = threading.Lock()
    threads = [threading.Thread(target=work) for work in (use, use, use, pay_in, pay_in)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert funds.available() == 1_000_000 + 2 * 15 * 2 - 3 * 15 * 5
    assert funds.differences() == []


def test_what_a_hold_returns_to_an_expired_grant_expires_with_it(funds: FundWorld) -> None:
    funds.give(100, days=1)
    hold = funds.place(60)
    funds.clock.advance(seconds=86_400)
    assert expire_grants(funds.books, at=funds.clock.now()) == 1

    funds.clock.advance(seconds=1)
    funds.settle(Used(hold, picos=25))
    assert expire_grants(funds.books, at=funds.clock.now()) == 1

    balances = funds.balances()
    assert (balances["revenue:USD"], balances["promo_expense:USD"]) == (25, -25)
    assert (funds.available(), funds.funds().held) == (0, 0)
    assert expire_grants(funds.books, at=funds.clock.now()) == 0
    assert funds.differences() == []


def test_a_paid_grant_that_expires_is_breakage(funds: FundWorld) -> None:
    funds.top_up_until(100, at=funds.clock.now() + timedelta(days=1))
    funds.clock.advance(seconds=86_400)

    expire_grants(funds.books, at=funds.clock.now())

    assert funds.balances()["breakage:USD"] == 100


def test_an_old_hold_is_marked_and_still_settles(funds: FundWorld) -> None:
    funds.top_up(50)
    old = funds.place(30)
    funds.clock.advance(seconds=100)
    young = funds.place(10)

    marked = mark_old_holds(funds.books, placed_before=funds.clock.now() - timedelta(seconds=50))
    again = mark_old_holds(funds.books, placed_before=funds.clock.now() - timedelta(seconds=50))

    assert (marked, again) == ([old.id], [])
    unresolved = list_open_holds(funds.books, only_unresolved=True, limit=9)
    assert [hold.id for hold in unresolved] == [old.id]
    every = list_open_holds(funds.books, only_unresolved=False, limit=9)
    assert [hold.id for hold in every] == [old.id, young.id]
    funds.settle(Used(old, picos=5))
    assert (funds.available(), funds.funds().held) == (35, 10)


def test_a_released_hold_gives_everything_back(funds: FundWorld) -> None:
    funds.give(20)
    funds.top_up(50)
    budget = funds.budget(1_000)
    hold = funds.place(30)
    assert funds.standing(budget) == (30, 0)

    release_open_hold(funds.books, hold.id, command=funds.command())

    assert (funds.available(), funds.funds().held, funds.standing(budget)) == (70, 0, (0, 0))
    with pytest.raises(HoldEnded, match="released"):
        release_open_hold(funds.books, hold.id, command=funds.command())
    with pytest.raises(HoldNotFound):
        release_open_hold(funds.books, "no-such-hold", command=funds.command())
    assert funds.differences() == []


def test_a_charge_above_its_hold_stands_on_suspense_and_is_an_error_line(funds: FundWorld) -> None:
    funds.top_up(50)
    within, beyond = funds.place(10), funds.place(10)

    with capture_logs() as logs:
        funds.settle(Used(within, picos=10, tokens=1), Used(beyond, picos=14, tokens=1))

    assert (funds.available(), funds.balances()["suspense:USD"]) == (30, -4)
    said = [line for line in logs if line["event"] == "usage_event.not_covered"]
    assert [(line["event_id"], line["held"], line["charged"]) for line in said] == [
        (beyond.id, 10, 14)
    ]
