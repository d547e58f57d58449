"""What commands do with money, on every database: each once, and nothing where it is refused."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import insert

from steelyard.billing.commands import (
    AmountNotPositive,
    Booked,
    CommandIdMalformed,
    CommandIdTaken,
    new_command,
)
from steelyard.billing.correction import correct_balance
from steelyard.billing.credit_line import (
    MoreThanOwed,
    set_credit_limit,
    take_payment,
    write_off_debt,
)
from steelyard.billing.pay_out import pay_out_credit
from steelyard.billing.refund import (
    EventNotFound,
    RefundNotFound,
    RefundTooLarge,
    RefundUndone,
    refund_event,
    undo_refund,
)
from steelyard.billing.top_up import (
    CurrencyMismatch,
    ExpiryPassed,
    GrantTerms,
    NoOwnBalance,
    PriorityMalformed,
    add_credit,
    grant_credit,
    standing_grant_id,
)
from steelyard.errors import Refusal
from steelyard.ledger.hold import CREDIT_LINE
from steelyard.ledger.store import InsufficientFunds
from steelyard.money import Currency, Money
from steelyard.storage import schema
from tests.fund_world import USD, FundWorld, Used


def test_top_ups_add_to_one_grant_unless_they_have_terms_of_their_own(funds: FundWorld) -> None:
    funds.top_up(50)
    funds.top_up(20)
    funds.top_up_until(5, at=funds.clock.now() + timedelta(days=1))

    grants = funds.funds().grants

    assert [balance.picos for balance in grants] == [5, 70]
    assert grants[1].grant.id == standing_grant_id(funds.acme.id)
    assert funds.balances()["clearing:USD"] == -75


def test_a_lower_priority_number_is_spent_before_an_earlier_expiry(funds: FundWorld) -> None:
    funds.give(10, days=1)
    funds.give(10, days=9, priority=1)

    hold = funds.place(12)

    assert [draw.picos for draw in hold.draws] == [10, 2]
    first = next(b.grant for b in funds.funds().grants if b.picos == 8)
    assert first.priority != 1


@pytest.mark.parametrize("name", ["top_up", "grant", "pay_out", "correct", "payment", "write_off"])
def test_a_command_that_is_repeated_moves_money_once(name: str, funds: FundWorld) -> None:
    funds.top_up(50)
    funds.allow_credit(50)
    if name in {"payment", "write_off"}:
        funds.settle(Used(funds.place(80), picos=80))
    commands = _commands(funds)

    first = commands[name](7, "once")
    before = funds.balances()
    again = commands[name](7, "once")

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.transaction.id == first.transaction.id == "once"
    assert funds.balances() == before
    with pytest.raises(CommandIdTaken):
        commands[name](8, "once")
    assert funds.balances() == before
    assert funds.differences() == []


@pytest.mark.parametrize("name", ["top_up", "grant", "pay_out", "payment", "write_off"])
@pytest.mark.parametrize("picos", [0, -1])
def test_an_amount_that_moves_is_positive(name: str, picos: int, funds: FundWorld) -> None:
    _is_refused(funds, AmountNotPositive, lambda: _commands(funds)[name](picos, "id"))


@pytest.mark.parametrize("name", ["top_up", "grant", "pay_out", "correct", "payment", "write_off"])
def test_another_currency_is_refused(name: str, funds: FundWorld) -> None:
    commands = _commands(funds, currency=Currency("EUR"))

    _is_refused(funds, CurrencyMismatch, lambda: commands[name](5, "id"))


def test_a_department_that_spends_its_organisations_balance_has_none(funds: FundWorld) -> None:
    amount = Money(5, USD)

    for command in (add_credit, pay_out_credit, take_payment, write_off_debt):
        _is_refused(
            funds,
            NoOwnBalance,
            lambda c=command: c(
                funds.books, funds.research, amount=amount, command=funds.command()
            ),
        )
    _is_refused(
        funds,
        NoOwnBalance,
        lambda: set_credit_limit(
            funds.books, funds.research, limit=amount, command=funds.command()
        ),
    )


def test_terms_that_cannot_be_are_refused(funds: FundWorld) -> None:
    amount, now = Money(5, USD), funds.clock.now()
    for terms, refusal in (
        (GrantTerms(expires_at=now), ExpiryPassed),
        (GrantTerms(priority=-1), PriorityMalformed),
        (GrantTerms(priority=101), PriorityMalformed),
    ):
        for give in (add_credit, grant_credit):
            _is_refused(
                funds,
                refusal,
                lambda g=give, t=terms: g(
                    funds.books, funds.acme, amount=amount, command=funds.command(), terms=t
                ),
            )


@pytest.mark.parametrize("command_id", ["", "a b", "a/b", "a:b", "a,b", "-a", "a" * 57])
def test_an_id_that_could_be_mistaken_is_refused(command_id: str, funds: FundWorld) -> None:
    with pytest.raises(CommandIdMalformed):
        new_command(clock=funds.clock, actor="a", reason="r", command_id=command_id)


def test_only_unspent_paid_money_is_paid_out(funds: FundWorld) -> None:
    funds.top_up(50)
    funds.give(100)
    pay_out = _commands(funds)["pay_out"]

    _is_refused(funds, InsufficientFunds, lambda: pay_out(51, "too-much"))
    pay_out(50, "all")

    assert funds.available() == 100
    assert funds.balances()["clearing:USD"] == 0


def test_what_is_owed_is_not_paid_out(funds: FundWorld) -> None:
    funds.allow_credit(30)
    funds.settle(Used(funds.place(30), picos=30))
    funds.top_up(50)
    pay_out = _commands(funds)["pay_out"]

    _is_refused(funds, InsufficientFunds, lambda: pay_out(21, "too-much"))
    pay_out(20, "what-is-free")

    assert (funds.funds().granted, funds.funds().owed) == (30, 30)


def test_a_payment_is_at_most_what_is_owed(funds: FundWorld) -> None:
    funds.allow_credit(30)
    funds.settle(Used(funds.place(30), picos=25))
    commands = _commands(funds)

    _is_refused(funds, MoreThanOwed, lambda: commands["payment"](26, "too-much"))
    commands["payment"](20, "p")
    _is_refused(funds, MoreThanOwed, lambda: commands["write_off"](6, "too-much"))
    commands["write_off"](5, "w")

    balances = funds.balances()
    assert (funds.funds().owed, funds.available()) == (0, 30)
    assert (balances["clearing:USD"], balances["write_off:USD"]) == (-20, -5)


def test_a_credit_limit_is_not_below_what_is_owed(funds: FundWorld) -> None:
    funds.allow_credit(30)
    funds.settle(Used(funds.place(30), picos=25))

    _is_refused(funds, InsufficientFunds, lambda: funds.allow_credit(24))
    _is_refused(funds, AmountNotPositive, lambda: funds.allow_credit(-1))
    funds.allow_credit(25)

    assert funds.available() == 0


def test_a_refund_returns_to_where_the_money_came_from_the_last_spent_first(
    funds: FundWorld,
) -> None:
    event_id = _spend_30_of_promotional_40_of_paid_and_10_of_credit(funds)

    refund_event(funds.books, event_id, picos=25, command=funds.command())
    assert _stands(funds) == ([15], 0)
    refund_event(funds.books, event_id, picos=30, command=funds.command())
    assert _stands(funds) == ([5, 40], 0)
    refund_event(funds.books, event_id, picos=None, command=funds.command())

    assert _stands(funds) == ([30, 40], 0)
    assert funds.balances()["revenue:USD"] == 0
    assert funds.differences() == []


def test_no_more_is_refunded_than_was_charged(funds: FundWorld) -> None:
    event_id = _spend_30_of_promotional_40_of_paid_and_10_of_credit(funds)
    refund_event(funds.books, event_id, picos=50, command=funds.command())

    _is_refused(funds, RefundTooLarge, lambda: _refund(funds, event_id, 31))
    _refund(funds, event_id, 30)
    _is_refused(funds, RefundTooLarge, lambda: _refund(funds, event_id, None))
    _is_refused(funds, AmountNotPositive, lambda: _refund(funds, event_id, 0))
    _is_refused(funds, EventNotFound, lambda: _refund(funds, "no-such-event", 1))


def test_a_refund_of_a_refund_charges_again_once(funds: FundWorld) -> None:
    event_id = _spend_30_of_promotional_40_of_paid_and_10_of_credit(funds)
    refund = _refund(funds, event_id, None)

    undone = undo_refund(funds.books, refund.transaction.id, command=funds.command("undo"))

    assert _stands(funds) == ([], 10)
    assert funds.balances()["revenue:USD"] == 80
    again = undo_refund(funds.books, refund.transaction.id, command=funds.command("undo"))
    assert (again.is_repeat, again.transaction.id) == (True, undone.transaction.id)
    _is_refused(funds, RefundUndone, lambda: _undo(funds, refund.transaction.id))
    _is_refused(funds, RefundNotFound, lambda: _undo(funds, undone.transaction.id))
    _is_refused(funds, RefundNotFound, lambda: _undo(funds, "no-such-refund"))
    assert _refund(funds, event_id, None).transaction.postings
    assert funds.balances()["revenue:USD"] == 0
    assert funds.differences() == []


def test_a_refund_that_was_spent_since_cannot_be_undone(funds: FundWorld) -> None:
    funds.top_up(30)
    hold = funds.place(30)
    funds.settle(Used(hold, picos=30))
    refund = _refund(funds, hold.id, None)
    funds.place(1)

    _is_refused(funds, InsufficientFunds, lambda: _undo(funds, refund.transaction.id))


def test_a_refund_to_an_expired_grant_expires_with_it(funds: FundWorld) -> None:
    funds.give(30, days=1)
    hold = funds.place(30)
    funds.settle(Used(hold, picos=30))
    funds.clock.advance(seconds=86_400)

    _refund(funds, hold.id, None)

    assert funds.available() == 0
    assert funds.funds().granted == 30


def test_a_correction_settles_what_is_owed_first(funds: FundWorld) -> None:
    funds.allow_credit(30)
    funds.settle(Used(funds.place(30), picos=25))
    correct = _commands(funds)["correct"]

    correct(35, "in-favour")
    assert (funds.funds().owed, funds.funds().granted) == (0, 10)
    correct(-15, "against")

    assert (funds.funds().owed, funds.funds().granted) == (5, 0)
    _is_refused(funds, InsufficientFunds, lambda: correct(-26, "too-much"))
    _is_refused(funds, AmountNotPositive, lambda: correct(0, "nothing"))
    assert funds.balances()["revenue:USD"] == 25 - 35 + 15


def test_an_adjustment_after_a_closed_period_goes_on_the_next_invoice(funds: FundWorld) -> None:
    funds.top_up(30)
    period_end = funds.clock.now() + timedelta(days=7)
    with funds.stores.database.write() as connection:
        connection.execute(
            insert(schema.invoices),
            {
                "id": "hash",
                "number": "1",
                "kind": "invoice",
                "organisation_id": funds.acme.id,
                "period_start": funds.clock.now(),
                "period_end": period_end,
                "issued_at": funds.clock.now(),
                "corrects": None,
                "command_id": "closing",
                "canonical": "{}",
            },
        )

    _commands(funds)["correct"](5, "late")

    with funds.books.write() as unit:
        adjustment = unit.find_adjustment("late")
    assert adjustment is not None
    assert (adjustment.billed_at, adjustment.amount) == (period_end, Money(5, USD))
    assert (adjustment.organisation_id, adjustment.department_id) == (funds.acme.id, "")


def test_the_history_tells_who_did_what_and_why(funds: FundWorld) -> None:
    funds.top_up(30)
    funds.clock.advance(seconds=1)
    funds.settle(Used(funds.place(30), picos=25))
    _commands(funds)["pay_out"](2, "out")

    history = funds.stores.funds.history_of(funds.acme.id, limit=9)

    assert [(row.template, row.picos) for row in history] == [("pay_out", -2), ("top_up", 30)]
    assert {(row.actor, row.reason) for row in history} == {("test", "because")}


def _commands(
    funds: FundWorld, *, currency: Currency = USD
) -> dict[str, Callable[[int, str], Booked]]:
    """Each command on acme, given an amount and an id."""
    terms = GrantTerms(expires_at=funds.clock.now() + timedelta(days=1))

    def grant(picos: int, command_id: str) -> Booked:
        amount, command = Money(picos, currency), funds.command(command_id)
        return grant_credit(funds.books, funds.acme, amount=amount, command=command, terms=terms)

    commands: dict[str, Callable[[int, str], Booked]] = {"grant": grant}
    for name, act in (
        ("top_up", add_credit),
        ("pay_out", pay_out_credit),
        ("correct", correct_balance),
        ("payment", take_payment),
        ("write_off", write_off_debt),
    ):
        commands[name] = lambda picos, command_id, act=act: act(
            funds.books,
            funds.acme,
            amount=Money(picos, currency),
            command=funds.command(command_id),
        )
    return commands


def _is_refused(funds: FundWorld, refusal: type[Refusal], act: Callable[[], object]) -> None:
    """With that refusal, and nothing changed."""
    before = funds.balances(), funds.funds()

    with pytest.raises(refusal):
        act()

    assert (funds.balances(), funds.funds()) == before


def _refund(funds: FundWorld, event_id: str, picos: int | None) -> Booked:
    return refund_event(funds.books, event_id, picos=picos, command=funds.command())


def _undo(funds: FundWorld, refund_id: str) -> Booked:
    return undo_refund(funds.books, refund_id, command=funds.command())


def _stands(funds: FundWorld) -> tuple[list[int], int]:
    return [balance.picos for balance in funds.funds().grants], funds.funds().owed


def _spend_30_of_promotional_40_of_paid_and_10_of_credit(funds: FundWorld) -> str:
    """Returns the id of the one event that spent all that."""
    funds.give(30)
    funds.top_up(40)
    funds.allow_credit(10)
    hold = funds.place(80)
    assert hold.draws[-1].grant_id == CREDIT_LINE
    funds.settle(Used(hold, picos=80))
    assert _stands(funds) == ([], 10)
    return hold.id
