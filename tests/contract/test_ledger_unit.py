"""What the ledger's store promises, on every database."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import DBAPIError

from steelyard.ids import new_id
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.grant import Grant
from steelyard.ledger.hold import CREDIT_LINE, BudgetDraw, Draw, Hold
from steelyard.ledger.store import BalanceTooLarge, InsufficientFunds
from steelyard.ledger.transaction import (
    Command,
    Posting,
    Transaction,
    charge_usage,
    place_holds,
    top_up,
    write_off,
)
from steelyard.money import Currency, Money
from steelyard.storage.database import Database, open_database, sqlite_url
from steelyard.storage.ledger_unit import SqlLedgerUnit
from steelyard.storage.migration import migrate
from tests.conftest import MakeSettings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
USD = Currency("USD")
PAYER = "payer"
OpenUnit = Callable[[], AbstractContextManager[SqlLedgerUnit]]


@pytest.fixture
def database(make_settings: MakeSettings) -> Generator[Database]:
    settings = make_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    opened = open_database(settings.database_url or sqlite_url(settings.books_path))
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def write(database: Database) -> OpenUnit:
    @contextmanager
    def opened() -> Generator[SqlLedgerUnit]:
        with database.write() as connection:
            yield SqlLedgerUnit(connection)

    return opened


def test_what_is_locked_is_what_is_left_of_each_grant_and_of_the_credit_line(
    write: OpenUnit,
) -> None:
    paid, promo = _grant("paid"), _grant("promotional")
    _give(write, paid, picos=70)
    _give(write, promo, picos=30)
    _give(write, _grant("paid", payer_id="other"), picos=1)

    with write() as unit:
        unit.set_credit_limit(PAYER, currency=USD, picos=5)

    with write() as unit:
        grants, credit = unit.lock_funds([PAYER], currency=USD)[PAYER]
    assert {(g.grant, g.picos) for g in grants} == {(paid, 70), (promo, 30)}
    assert credit == 5


def test_a_payer_without_any_account_has_nothing(write: OpenUnit) -> None:
    with write() as unit:
        assert unit.lock_funds(["nobody"], currency=USD) == {"nobody": ([], 0)}


def test_the_credit_line_ends_at_its_limit(write: OpenUnit) -> None:
    with write() as unit:
        unit.set_credit_limit(PAYER, currency=USD, picos=5)
    with write() as unit:
        unit.post([_charge(Draw(CREDIT_LINE, 5))])

    with pytest.raises(InsufficientFunds, match="0 USD available"), write() as unit:
        unit.post([_charge(Draw(CREDIT_LINE, 1))])
    with pytest.raises(InsufficientFunds, match="owes"), write() as unit:
        unit.set_credit_limit(PAYER, currency=USD, picos=4)

    with write() as unit:
        assert unit.lock_funds([PAYER], currency=USD)[PAYER] == ([], 0)


def test_a_refused_transaction_leaves_nothing(database: Database, write: OpenUnit) -> None:
    grant = _grant("paid")
    _give(write, grant, picos=70)

    with pytest.raises(InsufficientFunds), write() as unit:
        unit.post([_charge(Draw(grant.id, 71))])

    assert _scalar(database, "SELECT COUNT(*) FROM ledger_transactions") == 1
    assert _scalar(database, "SELECT SUM(picos) FROM ledger_postings") == 0


@pytest.mark.parametrize("power", [53, 63])
def test_amounts_around_powers_of_two_are_kept_to_the_last_pico(
    power: int, write: OpenUnit
) -> None:
    for picos in (2**power - 1, 2**power, 2**power + 1):
        grant = _grant("paid", payer_id=f"payer-{picos}")
        with write() as unit:
            is_too_large = unit.connection.dialect.name == "sqlite" and picos >= 2**63
        if is_too_large:
            with pytest.raises(BalanceTooLarge):
                _give(write, grant, picos=picos)
            continue
        with write() as unit:
            unit.insert_grant(grant)
            given = Money(picos, USD)
            unit.post(
                [
                    Transaction(
                        new_id(),
                        "test",
                        "test",
                        NOW,
                        [
                            Posting(LedgerAccount("prepaid", grant.payer_id, USD, grant.id), picos),
                            Posting(LedgerAccount("clearing", grant.payer_id, USD), -picos),
                        ],
                    )
                ]
            )
            unit.post([place_holds(new_id(), [_hold(grant, given)], at=NOW) or _never()])
        with write() as unit:
            held = LedgerAccount("held", grant.payer_id, USD)
            assert unit.lock_balances([held]) == {held.id: picos}


def test_a_hold_comes_back_as_it_went_in_and_is_taken_once(write: OpenUnit) -> None:
    hold = Hold(
        new_id(),
        PAYER,
        Money(7, USD),
        "source",
        NOW,
        "{}",
        (Draw("a", 5), Draw(CREDIT_LINE, 2)),
        (BudgetDraw("money", "b1", "2026-11", 7), BudgetDraw("tokens", "b2", "total", 30)),
    )
    with write() as unit:
        unit.insert_holds([hold])

    with write() as unit:
        assert unit.read_holds([hold.id, "other"]) == {hold.id: hold}
        assert unit.lock_holds([hold.id]) == {hold.id: hold}
        assert unit.take_holds([hold.id, "other"]) == {hold.id: hold}
        assert unit.take_holds([hold.id]) == {}
        assert unit.take_holds([]) == {}


def test_declined_and_released_holds_are_remembered(database: Database, write: OpenUnit) -> None:
    with write() as unit:
        unit.end_holds({"a": "too little"}, end="declined", at=NOW)
        unit.end_holds({"b": "by hand"}, end="released", at=NOW)

    with write() as unit:
        ends = unit.hold_ends(["a", "b", "c"])

    assert ends == {"a": ("declined", "too little"), "b": ("released", "by hand")}
    with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
        connection.exec_driver_sql("DELETE FROM ended_holds")


def test_ten_thousand_holds_are_taken_at_once(write: OpenUnit) -> None:
    holds = [Hold(new_id(), PAYER, Money(0, USD), "source", NOW, "{}") for _ in range(10_000)]
    with write() as unit:
        unit.insert_holds(holds)

    with write() as unit:
        taken = unit.take_holds([hold.id for hold in holds])

    assert len(taken) == 10_000


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE ledger_accounts SET balance = -1 WHERE kind = 'prepaid'", "floor"),
        ("UPDATE ledger_accounts SET balance = -1 WHERE kind = 'held'", "floor"),
        ("UPDATE ledger_accounts SET balance = -6 WHERE kind = 'receivable'", "floor"),
        ("UPDATE ledger_postings SET picos = 1", "append-only"),
        ("DELETE FROM ledger_transactions", "append-only"),
        ("UPDATE grants SET priority = 1", "append-only"),
        (
            "INSERT INTO ledger_transactions VALUES ('t', 'top_up', 'r', 'now', NULL, NULL, 's')",
            "sum to zero",
        ),
        (
            (
                "INSERT INTO ledger_postings SELECT t.id, a.id, 1 FROM ledger_transactions t, "
                "ledger_accounts a WHERE a.kind = 'held'"
            ),
            "sealed",
        ),
        ("INSERT INTO ledger_postings VALUES ('t', 'clearing:USD', 0)", "not_zero"),
    ],
)
def test_the_database_itself_refuses_what_must_never_be(
    statement: str, message: str, database: Database, write: OpenUnit
) -> None:
    _give(write, _grant("paid"), picos=70)
    with write() as unit:
        unit.set_credit_limit(PAYER, currency=USD, picos=5)

    with pytest.raises(DBAPIError, match=message), database.write() as connection:
        connection.exec_driver_sql(statement)


def test_the_database_refuses_postings_that_do_not_sum_to_zero(
    database: Database, write: OpenUnit
) -> None:
    _give(write, _grant("paid"), picos=70)

    with pytest.raises(DBAPIError, match="sum to zero"), database.write() as connection:
        for account, picos in (("clearing:USD", -2), ("held:payer:USD", 1)):
            connection.exec_driver_sql(
                f"INSERT INTO ledger_postings VALUES ('t', '{account}', {picos})"
            )
        connection.exec_driver_sql(
            "INSERT INTO ledger_transactions VALUES ('t', 'top_up', 'r', 'now', NULL, NULL, 's')"
        )


def test_postings_without_their_transaction_do_not_last(
    database: Database, write: OpenUnit
) -> None:
    _give(write, _grant("paid"), picos=70)

    with pytest.raises(DBAPIError, match=r"(?i)foreign key"), database.write() as connection:
        connection.exec_driver_sql("INSERT INTO ledger_postings VALUES ('t', 'clearing:USD', 5)")

    assert _scalar(database, "SELECT SUM(picos) FROM ledger_postings") == 0


def test_nobody_owes_less_than_nothing_written_off(write: OpenUnit) -> None:
    with write() as unit:
        unit.set_credit_limit(PAYER, currency=USD, picos=5)
        unit.post([_charge(Draw(CREDIT_LINE, 3))])
        unit.post(
            [write_off([Draw(CREDIT_LINE, 3)], payer_id=PAYER, currency=USD, command=_command())]
        )

    with write() as unit:
        assert unit.lock_funds([PAYER], currency=USD)[PAYER] == ([], 5)


def _grant(kind: str, *, payer_id: str = PAYER) -> Grant:
    assert kind in {"paid", "promotional"}
    return Grant(
        new_id(),
        payer_id,
        "paid" if kind == "paid" else "promotional",
        USD,
        NOW,
        NOW + timedelta(days=1) if kind == "promotional" else None,
        7,
    )


def _give(write: OpenUnit, grant: Grant, *, picos: int) -> None:
    with write() as unit:
        unit.insert_grant(grant)
        unit.post([top_up(Money(picos, USD), grant=grant, command=_command())])


def _command() -> Command:
    return Command(new_id(), NOW, "test", "test")


def _charge(*draws: Draw) -> Transaction:
    return charge_usage(draws, payer_id=PAYER, currency=USD, reference="r", command=_command())


def _hold(grant: Grant, amount: Money) -> Hold:
    draws: Sequence[Draw] = [Draw(grant.id, amount.picos)]
    return Hold(new_id(), grant.payer_id, amount, "source", NOW, "{}", draws)


def _never() -> Transaction:
    raise AssertionError("a hold of something is a transaction")


def _scalar(database: Database, query: str) -> int:
    with database.read() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())
