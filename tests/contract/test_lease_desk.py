"""Leases in the books, on SQLite and PostgreSQL: linked, shares of what is there, never twice."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from threading import Barrier, Thread

import msgspec
import pytest
from sqlalchemy.exc import IntegrityError

from steelyard.access.budget import Budget
from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.billing.lease_desk import LeaseDesk, LeaseWanted
from steelyard.billing.lease_sizing import LeaseSize
from steelyard.ledger.hold import CREDIT_LINE, Hold
from steelyard.ledger.lease import Lease
from steelyard.ledger.transaction import return_lease
from steelyard.money import Money
from tests.fund_world import USD, FundWorld, Used


def _desk(funds: FundWorld) -> LeaseDesk:
    return LeaseDesk(funds.books, ttl=timedelta(seconds=10))


def _wanted(
    funds: FundWorld, picos: int, *, tokens: int = 0, hold: int = 1, source: str = "gateway:a:1"
) -> LeaseWanted:
    return LeaseWanted(
        payer_id=funds.acme.id,
        currency=USD,
        scope=funds.scope(),
        source=source,
        hold=LeaseSize(hold, 1),
        size=LeaseSize(picos, tokens),
        at=funds.clock.now(),
    )


def _take(funds: FundWorld, picos: int, *, tokens: int = 100) -> Lease:
    lease = _desk(funds).take(_wanted(funds, picos, tokens=tokens))
    assert lease is not None, "the funds are thin"
    return lease


def _leased_hold(funds: FundWorld, lease: Lease, picos: int) -> Hold:
    return msgspec.structs.replace(funds.hold(picos), lease_id=lease.id)


def _leased(funds: FundWorld) -> int:
    return funds.balances().get(f"leased:{funds.acme.id}:USD", 0)


def test_a_lease_takes_a_share_of_the_funds_in_the_order_of_burning(funds: FundWorld) -> None:
    funds.give(32)
    funds.top_up(1_600)
    funds.allow_credit(16)

    lease = _take(funds, 1_000)

    assert lease.amount == Money((32 + 1_600 + 16) // 16, USD)
    assert [draw.picos for draw in lease.draws] == [32, 71]
    assert (funds.available(), _leased(funds), funds.differences()) == (1_648 - 103, 103, [])


def test_a_lease_may_draw_on_the_credit_line_alone(funds: FundWorld) -> None:
    funds.allow_credit(160)

    lease = _take(funds, 1_000)

    assert [(draw.grant_id, draw.picos) for draw in lease.draws] == [(CREDIT_LINE, 10)]
    assert funds.funds().owed == 10
    assert funds.differences() == []


def test_thin_funds_and_thin_budgets_are_not_leased(funds: FundWorld) -> None:
    funds.top_up(6_400)
    desk = _desk(funds)

    by_money = desk.take(_wanted(funds, 1_000, hold=101))
    funds.budget(63)
    by_budget = desk.take(_wanted(funds, 1_000))

    assert (by_money, by_budget) == (None, None)
    assert funds.available() == 6_400
    assert funds.differences() == []


def test_a_lease_reserves_in_every_budget_above_its_key(funds: FundWorld) -> None:
    funds.top_up(10**6)
    money = funds.budget(160_000)
    tokens = funds.budget(1_600, unit="tokens", scope_id="key")
    other = funds.budget(1_600, unit="tokens", scope_id="other-key")

    lease = _take(funds, 50_000, tokens=500)

    assert (lease.amount.picos, lease.tokens) == (10_000, 100)
    assert [funds.standing(budget) for budget in (money, tokens, other)] == [
        (10_000, 0),
        (100, 0),
        (0, 0),
    ]
    assert funds.differences() == []


def test_a_lease_ends_before_its_money_and_before_its_windows(funds: FundWorld) -> None:
    funds.top_up(10**6)
    assert _take(funds, 10).expires_at == funds.clock.now().replace(second=10)
    until = funds.clock.now().replace(second=4)

    funds.top_up_until(1_000, at=until)

    assert _take(funds, 10).expires_at == until


def test_an_event_spends_of_its_lease_and_the_rest_stays_leased(funds: FundWorld) -> None:
    funds.give(32)
    funds.top_up(16_000)
    budget = funds.budget(10**6)
    lease = _take(funds, 500)

    funds.settle(
        Used(_leased_hold(funds, lease, 40), 20),
        Used(_leased_hold(funds, lease, 60), 50),
        Used(funds.place(100), 10),
    )

    assert _leased(funds) == 500 - 70
    assert funds.standing(budget) == (430, 80)
    assert funds.balances()["revenue:USD"] == 80
    assert funds.funds().held == 430
    assert funds.differences() == []


def test_a_charge_above_its_hold_is_not_taken_from_the_lease(funds: FundWorld) -> None:
    funds.top_up(16_000)
    lease = _take(funds, 500)

    funds.settle(Used(_leased_hold(funds, lease, 40), 45))

    balances = funds.balances()
    assert (_leased(funds), balances["revenue:USD"], balances["suspense:USD"]) == (460, 45, -5)
    assert funds.differences() == []


def test_a_lease_never_pays_more_than_it_has(funds: FundWorld) -> None:
    funds.top_up(16_000)
    lease = _take(funds, 100)

    funds.settle(Used(_leased_hold(funds, lease, 90), 90), Used(_leased_hold(funds, lease, 90), 90))

    assert (_leased(funds), funds.available()) == (0, 15_900)
    assert funds.balances()["suspense:USD"] == -80
    assert funds.differences() == []


def test_what_is_given_back_returns_to_where_it_came_from(funds: FundWorld) -> None:
    funds.give(32)
    funds.top_up(16_000)
    budget = funds.budget(10**6)
    lease = _take(funds, 500)

    _desk(funds).give_back(lease.id, LeaseSize(480, 0), at=funds.clock.now())

    assert [balance.picos for balance in funds.funds().grants] == [12, 16_000]
    assert (_leased(funds), funds.standing(budget)) == (20, (20, 0))
    assert _desk(funds).in_hand(funds.acme.id) == []
    assert funds.differences() == []


def test_the_rest_of_a_lease_goes_back_with_its_last_event(funds: FundWorld) -> None:
    funds.top_up(16_000)
    budget = funds.budget(10**6)
    lease, desk = _take(funds, 500), _desk(funds)
    first, last = _leased_hold(funds, lease, 40), _leased_hold(funds, lease, 50)
    desk.end(lease.id, last_event_id=last.id, at=funds.clock.now())

    funds.settle(Used(first, 30))
    assert _leased(funds) == 470
    funds.settle(Used(last, 0))

    assert (_leased(funds), funds.available()) == (0, 16_000 - 30)
    assert funds.standing(budget) == (0, 30)
    assert desk.left_by(source_prefix="gateway:a:") == []
    assert funds.differences() == []


def test_a_lease_whose_last_event_is_in_the_books_goes_at_once(funds: FundWorld) -> None:
    funds.top_up(16_000)
    used, unused, desk = _take(funds, 500), _take(funds, 300), _desk(funds)
    last = _leased_hold(funds, used, 50)
    funds.settle(Used(last, 20))

    for _ in range(2):
        desk.end(used.id, last_event_id=last.id, at=funds.clock.now())
        desk.end(unused.id, last_event_id=None, at=funds.clock.now())

    assert (_leased(funds), funds.available()) == (0, 15_980)
    assert funds.differences() == []


def test_an_event_of_a_lease_that_is_gone_moves_no_money(funds: FundWorld) -> None:
    funds.top_up(16_000)
    lease = _take(funds, 500)
    _desk(funds).end(lease.id, last_event_id=None, at=funds.clock.now())

    funds.settle(Used(_leased_hold(funds, lease, 50), 20))

    assert funds.available() == 16_000
    with funds.stores.audit.snapshot() as snapshot:
        assert snapshot.quarantined_count() == 1


def test_a_recall_reaches_every_gateway_that_holds_the_payers_money(funds: FundWorld) -> None:
    funds.top_up(16_000)
    desk = _desk(funds)
    ours, theirs = _take(funds, 500), desk.take(_wanted(funds, 500, source="gateway:b:1"))
    assert theirs is not None

    waited_for = desk.recall(funds.acme.id)
    desk.give_back(theirs.id, LeaseSize(500, 0), at=funds.clock.now())

    assert set(waited_for) == {ours.id, theirs.id}
    assert desk.recalled(source="gateway:a:1") == [ours.id]
    assert desk.recalled(source="gateway:b:1") == []
    assert desk.in_hand(funds.acme.id) == [ours.id]
    assert desk.recall(funds.acme.id) == [ours.id]


def test_leases_and_holds_together_never_pass_the_funds(funds: FundWorld) -> None:
    funds.top_up(3_200)
    start = Barrier(8)
    got: list[int] = []

    def compete(work: Callable[[], int]) -> Thread:
        def run() -> None:
            start.wait()
            got.extend(work() for _ in range(20))

        thread = Thread(target=run)
        thread.start()
        return thread

    def hold() -> int:
        try:
            return funds.place(30).amount.picos
        except HoldDeclined:
            return 0

    def lease() -> int:
        taken = _desk(funds).take(_wanted(funds, 100))
        return taken.amount.picos if taken else 0

    for thread in [compete(work) for work in (hold, lease) for _ in range(4)]:
        thread.join()

    assert sum(got) <= 3_200
    assert funds.available() == 3_200 - sum(got)
    assert funds.differences() == []


def test_more_than_is_leased_cannot_go_back(funds: FundWorld) -> None:
    funds.top_up(16_000)
    lease = _take(funds, 500)
    [taken] = lease.draws
    forged = replace(
        lease, amount=Money(501, USD), draws=(replace(taken, picos=501),), budget_draws=()
    )
    returned = return_lease(forged, back=forged.draws, at=funds.clock.now())
    assert returned is not None

    with pytest.raises(AssertionError, match="would fall to -1"), funds.books.write() as unit:
        unit.post([returned])

    assert (_leased(funds), funds.available()) == (500, 15_500)
    assert funds.differences() == []


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE leases SET amount = -1", "not_negative"),
        ("UPDATE ledger_accounts SET balance = -1 WHERE kind = 'leased'", "floor"),
        ("UPDATE leases SET status = 'ended'", "last_event_id"),
    ],
)
def test_the_database_refuses_a_lease_below_nothing(
    statement: str, constraint: str, funds: FundWorld
) -> None:
    funds.top_up(16_000)
    _take(funds, 500)

    with (
        pytest.raises(IntegrityError, match=constraint),
        funds.stores.database.write() as connection,
    ):
        connection.exec_driver_sql(statement)

    assert _leased(funds) == 500
    assert funds.differences() == []


def test_a_token_budget_counts_what_leased_requests_used(funds: FundWorld) -> None:
    funds.top_up(10**6)
    budget: Budget = funds.budget(16_000, unit="tokens")
    lease = _take(funds, 500, tokens=200)

    funds.settle(Used(_leased_hold(funds, lease, 60), 50, tokens=50))

    assert funds.standing(budget) == (150, 50)
    assert funds.differences() == []
