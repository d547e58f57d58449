"""What upstreams charge us stands beside what we earned with them, and is paid once."""

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.billing.commands import new_command
from steelyard.billing.upstream_cost import Margin, margins, pay_upstream_bill, record_cost
from steelyard.billing.verification import verify_books
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.transaction import Command
from steelyard.money import Currency, Money
from steelyard.storage.audit import SqlAuditSnapshot
from tests.conftest import MakeSettings
from tests.contract.test_money_cli import code_of, run
from tests.world import INPUT_PRICE, OUTPUT_PRICE, USD, World

ANSWER = 8 * INPUT_PRICE + 3 * OUTPUT_PRICE
DOLLAR = 10**12


def test_revenue_stands_beside_the_cost_of_its_month(world: World) -> None:
    world.organisation(dollars="1")
    world.clock.moment = datetime(2026, 10, 31, 23, 59, 59, 999999, tzinfo=UTC)
    _ask(world, times=1)
    world.clock.moment = datetime(2026, 11, 1, tzinfo=UTC)
    _ask(world, times=2)
    _record(world, 30, month="2026-11")
    _record(world, 4, month="2026-10")
    _record(world, 5, month="2026-11", upstream="idle")

    november, october = _margins(world, "2026-11"), _margins(world, "2026-10")

    assert november == [
        Margin("idle", USD, 0, 5, 5),
        Margin("scripted", USD, 2 * ANSWER, 30, 34),
    ]
    assert november[1].picos == 2 * ANSWER - 30
    assert october == [Margin("idle", USD, 0, 0, 5), Margin("scripted", USD, ANSWER, 4, 34)]
    assert world.differences() == []


def test_currencies_are_never_added_up(world: World) -> None:
    _record(world, 30)
    euros = Money(7, Currency("EUR"))
    record_cost(
        world.stores.books, "scripted", amount=euros, month="2026-11", command=_command(world)
    )

    assert _margins(world, "2026-11") == [
        Margin("scripted", Currency("EUR"), 0, 7, 7),
        Margin("scripted", USD, 0, 30, 30),
    ]
    assert world.differences() == []


def test_a_payment_settles_what_we_owe_and_no_more(world: World) -> None:
    _record(world, 30)
    books = world.stores.books

    pay_upstream_bill(books, "scripted", amount=Money(20, USD), command=_command(world))

    assert code_raised(world, pay=11) == "upstream_overpaid"
    assert code_raised(world, pay=1, upstream="unknown") == "upstream_overpaid"
    assert _margins(world, "2026-11") == [Margin("scripted", USD, 0, 30, 10)]
    assert _ledger(world) == {
        "upstream_cost:scripted:USD": -30,
        "upstream_payable:scripted:USD": 10,
        "clearing:USD": 20,
    }
    assert world.differences() == []


def test_a_credit_note_takes_back_what_was_recorded_and_no_more(world: World) -> None:
    _record(world, 30)
    _record(world, 9, month="2026-10")

    _record(world, -12)

    assert code_raised(world, record=-19) == "upstream_cost_negative"
    assert [margin.cost for margin in _margins(world, "2026-11")] == [18]
    assert world.differences() == []


def test_an_id_moves_money_once(world: World) -> None:
    first = _record(world, 30, command_id="bill-1")

    again = _record(world, 30, command_id="bill-1")

    assert (first, again) == (False, True)
    assert code_raised(world, record=-30, command_id="bill-1") == "command_id_taken"
    assert code_raised(world, record=31, command_id="bill-1") == "command_id_taken"
    assert code_raised(world, pay=30, command_id="bill-1") == "command_id_taken"
    assert _margins(world, "2026-11") == [Margin("scripted", USD, 0, 30, 30)]


CHANGES: Sequence[str] = (
    "UPDATE ledger_postings SET account_id = 'revenue:USD' WHERE account_id = 'clearing:USD'",
    "UPDATE ledger_postings SET picos = -picos WHERE transaction_id = 'bill'",
    "UPDATE ledger_transactions SET reference = '2026-11/other' WHERE id = 'bill'",
    "UPDATE ledger_accounts SET balance = 0 WHERE kind = 'upstream_payable'",
)


@pytest.mark.parametrize("change", CHANGES)
def test_tampering_with_costs_is_found_by_the_replay(change: str, world: World) -> None:
    world.organisation(dollars="1")
    _ask(world, times=1)
    _record(world, 30, command_id="bill")
    pay_upstream_bill(
        world.stores.books, "scripted", amount=Money(20, USD), command=_command(world)
    )

    database = world.stores.database
    with database.engine.connect() as connection:
        if database.is_sqlite:
            query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for (name,) in connection.exec_driver_sql(query).fetchall():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        assert connection.exec_driver_sql(change).rowcount > 0
        checks = verify_books(SqlAuditSnapshot(connection))
        connection.rollback()

    replay = next(check for check in checks if check.claim.startswith("every balance follows"))
    assert replay.differences


def test_the_commands_record_pay_and_report(world: World, commands: None) -> None:
    del commands
    bill = ("cost", "record", "scripted", "81.20", "--currency", "USD", "--period", "2026-11")

    recorded, again = run(*bill, "--id", "bill"), run(*bill, "--id", "bill")
    credited = run("cost", "record", "scripted", "-1.2", *bill[4:])
    paid = run("cost", "pay", "scripted", "30", "--currency", "USD", "--reason", "wire 9")
    report = run("cost", "report", "--period", "2026-11")
    table = CliRunner().invoke(application, ["cost", "report", "--period", "2026-11"]).stdout

    assert (recorded["is_repeat"], again["is_repeat"]) == (False, True)
    assert (recorded["recorded"], credited["recorded"], paid["paid"]) == ("81.2", "-1.2", "30")
    assert report == [
        {
            "upstream": "scripted",
            "currency": "USD",
            "revenue": "0",
            "cost": "80",
            "margin": "-80",
            "payable": "50",
        }
    ]
    assert "-80" in table
    assert world.differences() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("upstream_name_malformed", ("record", "a:b", "1", "--period", "2026-11")),
        ("amount_not_positive", ("record", "a", "0", "--period", "2026-11")),
        ("amount_malformed", ("record", "a", "1e3", "--period", "2026-11")),
        ("period_malformed", ("record", "a", "1", "--period", "2026-00")),
        ("period_malformed", ("record", "a", "1", "--period", "9999-12")),
        ("upstream_cost_negative", ("record", "a", "-1", "--period", "2026-11")),
        ("amount_not_positive", ("pay", "a", "-1")),
        ("upstream_overpaid", ("pay", "a", "1")),
    ],
)
def test_what_makes_no_sense_is_refused_and_books_nothing(
    code: str, words: Sequence[str], world: World, commands: None
) -> None:
    del commands

    assert code_of("cost", *words, "--currency", "USD") == code

    assert _ledger(world) == {}


@pytest.fixture
def commands(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The commands find the books of the world by the environment."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with capture_logs():
        yield


def code_raised(
    world: World,
    *,
    record: int = 0,
    pay: int = 0,
    upstream: str = "scripted",
    command_id: str | None = None,
) -> str:
    """The code with which a cost or a payment is refused."""
    with pytest.raises(SteelyardError) as refused:
        if record:
            _record(world, record, upstream=upstream, command_id=command_id)
        else:
            amount, command = Money(pay, USD), _command(world, command_id)
            pay_upstream_bill(world.stores.books, upstream, amount=amount, command=command)
    return refused.value.code


def _record(
    world: World,
    picos: int,
    *,
    month: str = "2026-11",
    upstream: str = "scripted",
    command_id: str | None = None,
) -> bool:
    """Whether this was done before."""
    amount, command = Money(picos, USD), _command(world, command_id)
    booked = record_cost(world.stores.books, upstream, amount=amount, month=month, command=command)
    return booked.is_repeat


def _ask(world: World, *, times: int) -> None:
    world.upstream.script = Script(words=("w",) * 3, prompt_tokens=8)
    for _ in range(times):
        answered = world.chat(max_tokens=3)
        assert answered.error is None, answered.error
    world.settle()


def _margins(world: World, month: str) -> list[Margin]:
    with world.stores.upstreams.snapshot() as snapshot:
        return margins(snapshot, month=month)


def _command(world: World, command_id: str | None = None) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because", command_id=command_id)


def _ledger(world: World) -> dict[str, Any]:
    with world.stores.audit.snapshot() as snapshot:
        return dict(snapshot.balances())
