"""The commands about money and tenants, as they are typed, on every database."""

import json
from collections.abc import Generator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from tests.conftest import MakeSettings
from tests.fund_world import FundWorld, Used


@pytest.fixture
def books(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[FundWorld]:
    """Books that the commands find by the environment."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with FundWorld(settings) as world, capture_logs():
        world.clock.moment = world.stores.clock.now()
        yield world


def run(*words: str) -> Any:
    """What a command prints as JSON; raises what it refuses with."""
    result = CliRunner().invoke(application, [*words, "--json"])
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def code_of(*words: str) -> str:
    """The code with which a command refuses."""
    result = CliRunner().invoke(application, [*words, "--json"])
    assert isinstance(result.exception, SteelyardError), result.output
    return result.exception.code


def test_money_comes_is_used_and_goes(books: FundWorld) -> None:
    run("credit", "add", "acme", "10", "--id", "first")
    again = run("credit", "add", "acme", "10", "--id", "first")
    run("credit", "grant", "acme", "5", "--expires", "2099-01-01T00:00:00Z")
    run("credit", "limit", "acme", "3")
    hold = books.place(17 * 10**12)
    books.settle(Used(hold, picos=16 * 10**12 + 10**12 // 2))

    run("credit", "payment", "acme", "1")
    run("credit", "write-off", "acme", "0.25", "--reason", "lost")
    refund = run("refund", "event", hold.id, "--amount", "2", "--reason", "bad answer")
    run("refund", "undo", refund["transaction_id"], "--reason", "it was good")
    run("refund", "event", hold.id, "--amount", "2", "--reason", "it was bad after all")
    run("credit", "correct", "acme", "1.5", "--reason", "kindness")
    run("credit", "pay-out", "acme", "1", "--reason", "asked for it")

    balance = run("balance", "acme")
    history = run("credit", "history", "acme")
    assert again["is_repeat"] is True
    assert [row["template"] for row in history] == [
        "pay_out",
        "refund_usage",
        "refund_usage",
        "charge_usage",
        "refund_usage",
        "write_off",
        "receive_payment",
        "promotional_credit",
        "top_up",
    ]
    paid_in, used, given_back = Decimal("16.25"), Decimal("16.5"), Decimal("2.5")
    stands = Decimal(balance["available"]) - Decimal(balance["credit_limit"])
    assert stands == paid_in - used + given_back
    assert balance["held"] == "0"
    assert books.differences() == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["credit", "add", "acme", "-5"], "amount_not_positive"),
        (["credit", "add", "acme", "0"], "amount_not_positive"),
        (["credit", "add", "acme", "0.0000000000001"], "amount_malformed"),
        (["credit", "add", "acme", "1e3"], "amount_malformed"),
        (["credit", "add", "acme", "5", "--currency", "EUR"], "currency_mismatch"),
        (["credit", "add", "acme", "5", "--currency", "eur"], "currency_unknown"),
        (["credit", "add", "acme", "5", "--priority", "101"], "priority_malformed"),
        (["credit", "add", "acme", "5", "--id", "a/b"], "command_id_malformed"),
        (["credit", "add", "acme/research", "5"], "no_own_balance"),
        (["credit", "add", "nobody", "5"], "tenant_not_found"),
        (["credit", "grant", "acme", "5", "--expires", "2020-01-01T00:00:00Z"], "expiry_passed"),
        (["credit", "pay-out", "acme", "5", "--reason", "r"], "insufficient_funds"),
        (["credit", "payment", "acme", "5"], "more_than_owed"),
        (["credit", "write-off", "acme", "5", "--reason", "r"], "more_than_owed"),
        (["credit", "correct", "acme", "0", "--reason", "r"], "amount_not_positive"),
        (["credit", "correct", "acme", "-5", "--reason", "r"], "insufficient_funds"),
        (["credit", "limit", "acme", "-5"], "amount_not_positive"),
        (["refund", "event", "nothing", "--reason", "r"], "event_not_found"),
        (["refund", "undo", "nothing", "--reason", "r"], "refund_not_found"),
        (["hold", "release", "nothing", "--reason", "r"], "hold_not_found"),
        (["budget", "set", "acme"], "budget_malformed"),
        (["budget", "set", "acme", "--amount", "5", "--tokens", "5"], "budget_malformed"),
        (["budget", "set", "acme", "--amount", "0"], "budget_malformed"),
        (["budget", "set", "acme", "--amount", "-5"], "budget_malformed"),
        (["budget", "set", "acme", "--tokens", "1.5"], "budget_malformed"),
        (["budget", "set", "acme", "--tokens", "5", "--per", "year"], "budget_malformed"),
        (["budget", "set", "acme/research/nothing", "--tokens", "5"], "project_not_found"),
        (["budget", "set", "acme/research/k", "--key", "--tokens", "5"], "key_not_found"),
        (["budget", "end", "nothing"], "budget_not_found"),
        (["org", "create", "other", "--time-zone", "Mars/Olympus"], "time_zone_unknown"),
        (["org", "create", "other", "--tax", "100.1"], "tax_malformed"),
        (["org", "create", "other", "--plan", "Gold Plan"], "name_malformed"),
        (["org", "set", "nobody"], "tenant_not_found"),
        (["project", "create", "acme/nobody/vision"], "tenant_not_found"),
        (["key", "create", "acme/research", "laptop", "--project", "x"], "project_not_found"),
        (["key", "move", "nothing", "--to", "acme/research"], "key_not_found"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_with_its_code_and_changes_nothing(
    words: Sequence[str], code: str, books: FundWorld
) -> None:
    before = books.balances(), books.funds()

    assert code_of(*words) == code

    assert (books.balances(), books.funds()) == before
    assert len(books.stores.access.organisations()) == 1
    assert books.stores.budgets.budgets() == []


def test_an_organisation_has_settings_that_can_be_changed(books: FundWorld) -> None:
    made = run("org", "create", "other", "--time-zone", "Asia/Shanghai", "--tax", "7.7")
    assert (made["time_zone"], made["tax"], made["plan"]) == ("Asia/Shanghai", "7.7 %", None)

    changed = run("org", "set", "other", "--plan", "gold", "--tax", "19")
    assert (changed["time_zone"], changed["tax"], changed["plan"]) == (
        "Asia/Shanghai",
        "19 %",
        "gold",
    )
    run("org", "set", "other", "--no-plan")

    found = books.stores.access.find_organisation("other")
    assert (found.plan, found.tax_ppm, found.time_zone) == (None, 190_000, "Asia/Shanghai")


def test_a_key_belongs_to_a_project_and_can_be_moved(books: FundWorld) -> None:
    books.department("sales")
    run("project", "create", "acme/research/vision")
    assert code_of("project", "create", "acme/research/vision") == "name_taken"
    by_option = run("key", "create", "acme/research", "laptop", "--project", "vision")
    by_path = run("key", "create", "acme/research/vision", "server")
    assert by_option["project"] == by_path["project"] == "vision"

    moved = run("key", "move", "acme/research/laptop", "--to", "acme/sales")

    assert (moved["department"], moved["project"]) == ("acme/sales", None)
    assert books.stores.access.find_key(by_option["id"]).path == "acme/sales/laptop"
    run("key", "create", "acme/research", "laptop")
    assert code_of("key", "move", "acme/research/laptop", "--to", "acme/sales") == "name_taken"
    run("org", "create", "other")
    run("department", "create", "other/research")
    assert (
        code_of("key", "move", "acme/research/laptop", "--to", "other/research")
        == "key_move_refused"
    )
    assert [row["project"] for row in run("project", "list")] == ["acme/research/vision"]


def test_budgets_are_set_listed_and_ended(books: FundWorld) -> None:
    books.top_up(100 * 10**12)
    run("project", "create", "acme/research/vision")
    key = run("key", "create", "acme/research/vision", "server")
    run("budget", "set", "acme", "--amount", "50", "--per", "month")
    run("budget", "set", "acme/research", "--tokens", "1000", "--per", "day", "--soft")
    run("budget", "set", "acme/research/vision", "--amount", "5", "--per", "total")
    mine = run("budget", "set", "acme/research/server", "--key", "--amount", "40")
    assert code_of("budget", "set", "acme", "--amount", "60") == "budget_taken"

    books.settle(Used(books.place(30 * 10**12, key_id=key["id"]), picos=26 * 10**12))
    books.place(10**12, key_id=key["id"])

    rows = {row["place"]: row for row in run("budget", "list")}
    assert [rows[p]["scope"] for p in sorted(rows)] == [
        "organisation",
        "department",
        "key",
        "project",
    ]
    assert (rows["acme"]["used"], rows["acme"]["reserved"], rows["acme"]["left"]) == (
        "26",
        "1",
        "23",
    )
    assert rows["acme"]["alerts"] == "50 %"
    assert rows["acme/research"]["kind"] == "soft"
    assert rows["acme/research/vision"]["window"] == "total"
    run("budget", "end", mine["id"])
    assert len(run("budget", "list")) == 3


def test_open_holds_are_listed_and_released(books: FundWorld) -> None:
    books.top_up(100)
    hold = books.place(30)

    assert [row["id"] for row in run("hold", "list")] == [hold.id]
    assert run("hold", "list", "--unresolved") == []
    released = run("hold", "release", hold.id, "--reason", "lost")

    assert released["amount"] == "0.00000000003"
    assert run("hold", "list") == []
    assert code_of("hold", "release", hold.id, "--reason", "lost") == "hold_ended"


@pytest.mark.parametrize(
    "words",
    [["balance", "acme"], ["budget", "list"], ["credit", "history", "acme"], ["hold", "list"]],
)
def test_a_person_gets_a_table(words: Sequence[str], books: FundWorld) -> None:
    books.top_up(100)
    books.budget(100)
    books.place(30)

    result = CliRunner().invoke(application, words)

    assert result.exit_code == 0
    assert "0.000000000" in result.stdout
