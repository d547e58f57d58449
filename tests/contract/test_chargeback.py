"""Who bears a shared department pays for it once, exactly, and only when the month is closed."""

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.access.tenant import Department, Organisation
from steelyard.billing.billing_period import read_month
from steelyard.billing.chargeback import split
from steelyard.billing.chargeback_posting import (
    ChargebackEmpty,
    ChargebackPosted,
    PeriodNotClosed,
    Posted,
    Shown,
    post_chargeback,
    show_chargeback,
)
from steelyard.billing.chargeback_report import Chargeback, chargeback_rows
from steelyard.billing.chargeback_weights import set_weights
from steelyard.billing.commands import CommandIdTaken, new_command
from steelyard.billing.correction import correct_balance
from steelyard.billing.pay_out import pay_out_credit
from steelyard.billing.period_closing import close_period
from steelyard.billing.refund import refund_event
from steelyard.billing.verification import verify_books
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command
from steelyard.money import Money, read_decimal
from steelyard.storage.audit import SqlAuditSnapshot
from tests.conftest import MakeSettings
from tests.world import INPUT_PRICE, OUTPUT_PRICE, USD, World

NOVEMBER = read_month("2026-11", time_zone="UTC")
# No share of it is whole: it is not divisible by 7.
ANSWER = 8 * INPUT_PRICE + 3 * OUTPUT_PRICE


@pytest.fixture
def shared(world: World) -> World:
    """`platform` spends acme's balance; `research` and `sales`, which bear it, their own."""
    acme = world.organisation(dollars="1")
    platform = world.department(acme, "platform", pays_from="organisation")
    research, sales = world.department(acme, "research"), world.department(acme, "sales")
    for own in (research, sales):
        world.top_up(own, "1")
    set_weights(world.stores.books, platform, [(research, 5), (sales, 2)])
    return world


def test_a_report_splits_what_the_shared_department_cost(shared: World) -> None:
    _ask(shared, "platform", times=2)
    _ask(shared, "research", times=1)

    shown = _show(shared)

    totals = _totals(shown.chargeback)
    borne = 2 * ANSWER
    sales = borne * 2 // 7 + (borne * 2 % 7 > borne * 5 % 7)
    assert totals == {
        "acme": 0,
        "platform": 0,
        "research": ANSWER + borne - sales,
        "sales": sales,
    }
    assert (shown.posted_by, shown.chargeback.invoice) == (None, None)
    assert _balances(shown.chargeback) == {
        "acme": borne,
        "acme/research": sales - borne,
        "acme/sales": -sales,
    }
    with shared.stores.exports.snapshot() as snapshot:
        billed = snapshot.billed(_acme(shared), period=NOVEMBER)
    assert read_decimal(shown.chargeback.total) == billed == 3 * ANSWER


def test_posting_moves_paid_money_between_balances(shared: World) -> None:
    _ask(shared, "platform", times=2)
    _close(shared)
    before = _available(shared)
    shown = _show(shared)

    posted = _post(shared, "november")

    after = _available(shared)
    moved = {name: after[name] - before[name] for name in before}
    assert posted.chargeback == shown.chargeback
    assert moved == _balances(shown.chargeback)
    assert sum(moved.values()) == 0
    assert posted.chargeback.invoice == "acme-0001"
    assert shared.differences() == []


def test_a_split_event_is_borne_by_its_departments_and_paid_by_one(shared: World) -> None:
    acme, research, sales = (_department(shared, name).id for name in ("acme", "research", "sales"))
    weights = {acme: 1, research: 1, sales: 5}
    assert shared.ask_split(weights, key="acme").status == 200
    shared.settle()

    shown = _show(shared)

    cost = read_decimal(shared.events()[0].data.amount)
    expected = split(cost, weights)
    assert _totals(shown.chargeback) == {
        "acme": expected[acme],
        "platform": 0,
        "research": expected[research],
        "sales": expected[sales],
    }
    assert _balances(shown.chargeback) == {
        "acme": expected[research] + expected[sales],
        "acme/research": -expected[research],
        "acme/sales": -expected[sales],
    }
    assert sum(_totals(shown.chargeback).values()) == cost
    assert shared.differences() == []


def test_posting_moves_what_a_split_event_cost(shared: World) -> None:
    weights = {_department(shared, "research").id: 2, _department(shared, "sales").id: 1}
    shared.ask_split(weights, key="platform")
    shared.settle()
    _close(shared)
    before = _available(shared)

    posted = _post(shared, "november")

    after = _available(shared)
    moved = {name: after[name] - before[name] for name in before}
    assert moved == _balances(posted.chargeback)
    assert moved["acme"] == read_decimal(shared.events()[0].data.amount)
    assert posted.chargeback == _show(shared).chargeback
    assert shared.differences() == []


def test_a_refund_of_a_split_event_goes_to_those_who_bear_it(shared: World) -> None:
    weights = {_department(shared, "research").id: 2, _department(shared, "sales").id: 1}
    shared.ask_split(weights, key="acme")
    shared.settle()

    event = shared.events()[0]
    command = new_command(clock=shared.clock, actor="test", reason="test")
    refund_event(shared.stores.books, event.id, picos=None, command=command)

    assert set(_totals(_show(shared).chargeback).values()) == {0}


def test_statements_say_what_was_charged_back(shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    posted = _post(shared)

    movements = shared.statement("acme/sales").movements

    assert movements is not None
    charged = movements.commands["charge_back"].picos
    assert charged == _balances(posted.chargeback)["acme/sales"] < 0


def test_posting_again_with_the_same_id_is_the_same_posting(shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    first = _post(shared, "november")
    after = _available(shared)

    again = _post(shared, "november")
    with pytest.raises(ChargebackPosted):
        _post(shared, "another")

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.chargeback == first.chargeback
    assert _available(shared) == after


def test_of_two_who_post_at_once_one_wins(shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    before = _available(shared)

    def post(command_id: str) -> bool:
        try:
            return not _post(shared, command_id).is_repeat
        except ChargebackPosted:
            return False

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(post, ["one", "two", "three", "four"]))

    moved = {name: picos - before[name] for name, picos in _available(shared).items()}
    assert sum(won) == 1
    assert moved == _balances(_show(shared).chargeback)
    assert shared.differences() == []


def test_the_id_of_another_command_is_refused(shared: World) -> None:
    _ask(shared, "platform", times=1)
    acme, books = _acme(shared), shared.stores.books
    correct_balance(books, acme, amount=Money(1, USD), command=_command(shared, "taken"))
    _close(shared)

    with pytest.raises(CommandIdTaken):
        _post(shared, "taken")

    _post(shared, "november")
    december = read_month("2026-12", time_zone="UTC")
    command = _command(shared, "november")
    with pytest.raises(CommandIdTaken):
        post_chargeback(books, acme, period=december, command=command)


def test_what_was_posted_stays_as_it_was_when_weights_change(shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    posted = _post(shared, "november")

    set_weights(shared.stores.books, _department(shared, "platform"), [])

    shown = _show(shared)
    assert (shown.chargeback, shown.posted_by) == (posted.chargeback, "november")


def test_an_open_period_is_not_posted(shared: World) -> None:
    _ask(shared, "platform", times=1)
    before = _ledger(shared)

    with pytest.raises(PeriodNotClosed):
        _post(shared)

    assert _ledger(shared) == before


def test_nothing_is_half_posted_where_one_payer_lacks_money(shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    sales = _department(shared, "sales")
    books, command = shared.stores.books, _command(shared)
    pay_out_credit(books, sales, amount=Money(10**12, USD), command=command)
    before = _ledger(shared)

    with pytest.raises(InsufficientFunds, match="acme/sales"):
        _post(shared, "november")
    assert _ledger(shared) == before

    shared.top_up(sales, "1")
    _post(shared, "november")
    assert shared.differences() == []


def test_one_payer_of_all_is_showback_only(world: World) -> None:
    acme = world.organisation(dollars="1")
    platform = world.department(acme, "platform", pays_from="organisation")
    set_weights(world.stores.books, platform, [(_department(world, "acme"), 1)])
    _ask(world, "platform", times=1)
    _close(world)
    before = _ledger(world)

    with pytest.raises(ChargebackEmpty):
        _post(world)

    assert _ledger(world) == before
    assert _totals(_show(world).chargeback) == {"acme": ANSWER, "platform": 0}


def test_a_chain_is_passed_on_to_its_end(shared: World) -> None:
    network = shared.department(_acme(shared), "network")
    shared.top_up(network, "1")
    weights = [(_department(shared, "platform"), 2), (_department(shared, "sales"), 1)]
    set_weights(shared.stores.books, network, weights)
    _ask(shared, "network", times=1)
    _ask(shared, "platform", times=1)
    _close(shared)
    before = _available(shared)

    posted = _post(shared)

    totals = _totals(posted.chargeback)
    assert (totals["network"], totals["platform"]) == (0, 0)
    assert totals["research"] + totals["sales"] == 2 * ANSWER
    assert _available(shared)["acme/network"] - before["acme/network"] == ANSWER
    assert shared.differences() == []


def test_adjustments_count_where_they_belong(shared: World) -> None:
    _ask(shared, "platform", times=2)
    acme, books = _acme(shared), shared.stores.books
    refund_event(books, shared.events()[0].id, picos=7, command=_command(shared))
    correct_balance(books, acme, amount=Money(11, USD), command=_command(shared))

    chargeback = _show(shared).chargeback

    own = {line.department: read_decimal(line.own) for line in chargeback.departments}
    assert (own["platform"], own[None]) == (2 * ANSWER - 7, -11)
    assert read_decimal(chargeback.total) == 2 * ANSWER - 18
    rows = list(chargeback_rows(chargeback))
    assert sum(read_decimal(row["amount"]) for row in rows) == 2 * ANSWER - 18


CHANGES = {
    "the document": "UPDATE chargebacks SET canonical = REPLACE(canonical, 'sales', 'other')",
    "the invoice": "UPDATE chargebacks SET invoice = 'acme-0009'",
    "the row": "DELETE FROM chargebacks",
    "the posting": "UPDATE ledger_postings SET picos = picos - 1 WHERE transaction_id = 'november'",
}


@pytest.mark.parametrize("what", CHANGES)
def test_tampering_with_a_chargeback_is_found(what: str, shared: World) -> None:
    _ask(shared, "platform", times=1)
    _close(shared)
    _post(shared, "november")

    found = _differences_after(shared, CHANGES[what])

    named = "chargebacks november" if what in {"the document", "the invoice"} else "charge_back"
    assert any(named in difference for difference in found), found


def test_the_commands_set_show_and_book(shared: World, commands: None) -> None:
    del commands
    _ask(shared, "platform", times=1)
    set_now = _run("chargeback", "set", "acme/platform", "--weight", "research=1", "--json")
    listed = _run("chargeback", "list", "acme", "--json")
    report = _run("chargeback", "report", "acme", "--period", "2026-11", "--json")
    table = _say("chargeback", "report", "acme", "--period", "2026-11")
    csv = _say("chargeback", "report", "acme", "--period", "2026-11", "--format", "csv")
    _close(shared)
    words = ("chargeback", "post", "acme", "--period", "2026-11", "--id", "november", "--json")
    posted, again = _run(*words), _run(*words)
    ended = _run("chargeback", "set", "acme/platform", "--none", "--json")

    assert set_now == {"department": "acme/platform", "weights": {"research": 1}}
    assert [(row["department"], row["weight"]) for row in listed] == [("research", 1)]
    assert report["from"] == "2026-11-01T00:00:00.000000Z"
    assert "posting would move" in table
    assert "1/1 of platform" in table
    assert csv.splitlines()[0].startswith("organisation,from,until,department")
    assert (posted["is_repeat"], again["is_repeat"]) == (False, True)
    assert posted["balances"] == again["balances"] == report["balances"]
    assert ended["weights"] == {}
    assert _run("chargeback", "list", "--json") == []
    assert shared.differences() == []


REFUSED = {
    "weights_missing": ("set", "acme/platform"),
    "weight_malformed": ("set", "acme/platform", "--weight", "research=0"),
    "tenant_not_found": ("set", "acme/platform", "--weight", "nobody=1"),
    "chargeback_to_itself": ("set", "acme/platform", "--weight", "platform=1"),
    "chargeback_cyclic": ("set", "acme/research", "--weight", "platform=1"),
    "period_not_closed": ("post", "acme", "--period", "2026-11"),
    "period_malformed": ("report", "acme", "--period", "2026-13"),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    code: str, shared: World, commands: None
) -> None:
    del commands
    with shared.stores.chargebacks.snapshot() as snapshot:
        before = snapshot.weights_of(shared.tenants["acme"].id)

    assert _code_of("chargeback", *REFUSED[code]) == code

    with shared.stores.chargebacks.snapshot() as snapshot:
        assert snapshot.weights_of(shared.tenants["acme"].id) == before


@pytest.mark.parametrize("weight", ["research", "research=-1", "research=1.5", "=1", "research=٣"])
def test_a_weight_is_a_positive_whole_number(weight: str, shared: World, commands: None) -> None:
    del shared, commands

    assert _code_of("chargeback", "set", "acme/platform", "--weight", weight) == "weight_malformed"


def test_a_department_has_one_weight(shared: World, commands: None) -> None:
    del shared, commands
    words = ("--weight", "research=1", "--weight", "research=2")

    assert _code_of("chargeback", "set", "acme/platform", *words) == "weight_malformed"


@pytest.fixture
def commands(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """The commands find the books of the world by the environment."""
    settings = make_settings()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("STEELYARD_DATABASE_URL", settings.database_url)
    with capture_logs():
        yield


def _run(*words: str) -> Any:
    return json.loads(_say(*words))


def _say(*words: str) -> str:
    result = CliRunner().invoke(application, list(words))
    if isinstance(result.exception, SteelyardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def _code_of(*words: str) -> str:
    result = CliRunner().invoke(application, [*words, "--json"])
    assert isinstance(result.exception, SteelyardError), result.output
    return result.exception.code


def _ask(world: World, key: str, *, times: int) -> None:
    world.upstream.script = Script(words=("w",) * 3, prompt_tokens=8)
    for _ in range(times):
        answered = world.chat(key, max_tokens=3)
        assert answered.error is None, answered.error
    world.settle()


def _close(world: World) -> None:
    world.clock.moment = NOVEMBER.end + timedelta(minutes=1)
    close_period(world.stores.books, _acme(world), period=NOVEMBER, command=_command(world))


def _show(world: World) -> Shown:
    acme = _acme(world)
    with world.stores.chargebacks.snapshot() as snapshot:
        return show_chargeback(snapshot, acme, period=NOVEMBER)


def _post(world: World, command_id: str | None = None) -> Posted:
    acme = _acme(world)
    command = _command(world, command_id)
    return post_chargeback(world.stores.books, acme, period=NOVEMBER, command=command)


def _command(world: World, command_id: str | None = None) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because", command_id=command_id)


def _acme(world: World) -> Organisation:
    return world.stores.access.find_organisation("acme")


def _department(world: World, name: str) -> Department:
    return world.stores.access.find_department(f"acme/{name}")


def _totals(chargeback: Chargeback) -> dict[str | None, int]:
    return {line.department: read_decimal(line.total) for line in chargeback.departments}


def _balances(chargeback: Chargeback) -> dict[str, int]:
    return {line.payer: read_decimal(line.amount) for line in chargeback.balances}


def _available(world: World) -> dict[str, int]:
    """What each payer has."""
    names = ["acme", "acme/research", "acme/sales"]
    names += ["acme/network"] if "acme/network" in world.tenants else []
    return {name: world.balance(name).available.picos for name in names}


def _ledger(world: World) -> dict[str, int]:
    with world.stores.audit.snapshot() as snapshot:
        return dict(snapshot.balances())


def _differences_after(world: World, statement: str) -> list[str]:
    """What verification finds after somebody with the owner's rights did this."""
    database = world.stores.database
    with database.engine.connect() as connection:
        if database.is_sqlite:
            query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for (name,) in connection.exec_driver_sql(query).fetchall():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        else:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        assert connection.exec_driver_sql(statement).rowcount > 0
        checks = verify_books(SqlAuditSnapshot(connection))
        connection.rollback()
    return [difference for check in checks for difference in check.differences]
