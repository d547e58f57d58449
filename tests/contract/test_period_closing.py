"""A closed period has one invoice, which says to the pico what was taken, and never changes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import read_month
from steelyard.billing.commands import CommandIdTaken, new_command
from steelyard.billing.credit_line import set_credit_limit, take_payment
from steelyard.billing.invoice import invoice_id, read_invoice
from steelyard.billing.invoice_csv import invoice_rows
from steelyard.billing.period_closing import (
    Closed,
    PeriodClosed,
    PeriodGap,
    PeriodOpen,
    close_period,
    draft_invoice,
)
from steelyard.billing.refund import refund_event
from steelyard.billing.statement import Period
from steelyard.billing.top_up import GrantTerms, grant_credit
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.chart import LedgerAccount
from steelyard.ledger.transaction import Command
from steelyard.money import Money, read_decimal
from tests.world import INPUT_PRICE, NOW, OUTPUT_PRICE, USD, World

NOVEMBER = read_month("2026-11", time_zone="UTC")
DECEMBER = read_month("2026-12", time_zone="UTC")
TAX_PPM = 190_000
ANSWER = 7 * INPUT_PRICE + 2 * OUTPUT_PRICE


def test_the_total_is_what_was_taken_with_tax_rounded_once(world: World) -> None:
    acme = _taxed(world, dollars="1")
    _ask(world, times=3)

    closed = _close(world, acme, NOVEMBER)

    section = closed.invoice.sections[0]
    net = 3 * ANSWER
    assert (section.net, section.tax) == (_text(net), _text(net * 19 // 100))
    assert closed.invoice.total == "0.00"
    assert read_decimal(section.rounding) == -net - net * 19 // 100
    assert section.from_balance == "0"
    assert world.balance().total.picos == 10**12
    assert closed.issued.id == invoice_id(closed.issued.canonical)
    assert world.differences() == []


def test_a_total_of_whole_cents_is_paid_from_the_balance(world: World) -> None:
    acme = _taxed(world, dollars="5")
    _ask(world, words=100_000, times=1)

    closed = _close(world, acme, NOVEMBER)

    # One dollar and 14 micros for the answer, 19 per cent on it, and 0.00001666 less to whole cents.
    assert closed.invoice.total == "1.19"
    assert (closed.invoice.sections[0].from_balance, closed.invoice.to_pay) == ("1.19", "0")
    assert world.balance().total.picos == 381 * 10**10
    assert sum(read_decimal(row["amount"]) for row in invoice_rows(closed.invoice)) == 119 * 10**10


def test_a_draft_changes_nothing(world: World) -> None:
    acme = _taxed(world, dollars="5")
    _ask(world, words=100_000, times=1)
    before = _ledger(world)

    world.clock.moment = NOVEMBER.end + timedelta(minutes=1)
    draft = draft_invoice(world.stores.books, acme, period=NOVEMBER, at=world.clock.now())

    assert _ledger(world) == before
    assert _invoices(world) == []
    assert draft == _close(world, acme, NOVEMBER).invoice


def test_what_cannot_be_closed_changes_nothing(world: World) -> None:
    acme = _taxed(world, dollars="1")
    before = _ledger(world)

    with pytest.raises(PeriodOpen):
        close_period(world.stores.books, acme, period=NOVEMBER, command=_command(world))
    world.clock.moment = DECEMBER.end
    with pytest.raises(PeriodGap):
        close_period(world.stores.books, acme, period=DECEMBER, command=_command(world))
    _close(world, acme, NOVEMBER)
    with pytest.raises(PeriodClosed):
        _close(world, acme, NOVEMBER)
    with pytest.raises(PeriodGap):
        _close(world, acme, read_month("2027-01", time_zone="UTC"))

    assert _ledger(world) == before
    assert len(_invoices(world)) == 1


def test_closing_again_with_the_same_id_is_the_same_closing(world: World) -> None:
    acme = _taxed(world, dollars="1")
    _ask(world, times=1)
    first = _close(world, acme, NOVEMBER, command_id="november")

    again = _close(world, acme, NOVEMBER, command_id="november")
    with pytest.raises(CommandIdTaken):
        _close(world, acme, DECEMBER, command_id="november")

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.issued.id == first.issued.id
    assert len(_invoices(world)) == 1


def test_usage_that_comes_late_is_billed_in_the_next_period(world: World) -> None:
    acme = _taxed(world, dollars="1")
    _ask(world, times=1)
    world.chat()
    november = _close(world, acme, NOVEMBER)

    world.settle()
    _ask(world, times=2)
    december = _close(world, acme, DECEMBER)

    lines = december.invoice.sections[0].lines
    assert november.invoice.requests == 1
    assert december.invoice.requests == 3
    assert {(line.meter, line.count, line.used_in) for line in lines} == {
        ("input.text", "14", None),
        ("output.text", "4", None),
        ("input.text", "7", "acme-0001"),
        ("output.text", "2", "acme-0001"),
    }
    assert read_invoice(_invoices(world)[0]) == november.invoice
    assert world.differences() == []


def test_promotional_credit_is_not_taxed_and_a_refund_lowers_the_tax(world: World) -> None:
    acme = _taxed(world, dollars="1")
    grant_credit(
        world.stores.books,
        acme,
        amount=Money(ANSWER, USD),
        command=_command(world),
        terms=GrantTerms(NOW + timedelta(days=300)),
    )
    _ask(world, times=3)
    last = max(event.id for event in world.events())
    refund_event(world.stores.books, last, picos=None, command=_command(world))

    closed = _close(world, acme, NOVEMBER)

    section = closed.invoice.sections[0]
    assert section.usage == _text(3 * ANSWER)
    assert section.promotional == section.adjusted == section.net == _text(ANSWER)
    assert section.tax == _text(ANSWER * 19 // 100)
    assert [(a.kind, a.reference) for a in section.adjustments] == [("refund", last)]


def test_tax_that_nothing_covers_is_owed_and_no_credit_line_grows(world: World) -> None:
    acme = _taxed(world, dollars="0")
    set_credit_limit(world.stores.books, acme, limit=_dollars(2), command=_command(world))
    # 1.999998 dollars, so that next to nothing is left of the credit line.
    _ask(world, words=199_998, prompt=9, times=1)

    closed = _close(world, acme, NOVEMBER)
    available = world.stores.funds.funds_of(acme.id, currency=USD).available(at=NOW)
    owed = world.balance().owed
    take_payment(world.stores.books, acme, amount=owed, command=_command(world))
    paid = world.stores.funds.funds_of(acme.id, currency=USD)

    assert closed.invoice.total == "2.38"
    assert closed.invoice.to_pay == "2.38"
    assert owed == Money(238 * 10**10, USD)
    assert available == 0
    assert (paid.owed, paid.invoiced, paid.available(at=NOW)) == (0, 0, 2 * 10**12)
    assert world.differences() == []


def test_a_department_with_a_balance_of_its_own_has_a_section(world: World) -> None:
    acme = _taxed(world, dollars="1")
    lab = world.department(acme, "lab")
    world.top_up(lab, "1")
    _ask(world, times=2)
    _ask(world, key="lab", times=1)

    closed = _close(world, acme, NOVEMBER)

    sections = {section.payer: section for section in closed.invoice.sections}
    assert list(sections) == ["acme", "acme/lab"]
    assert sections["acme"].usage == _text(2 * ANSWER)
    assert sections["acme/lab"].usage == _text(ANSWER)
    assert world.differences() == []


def test_rounding_is_carried_from_invoice_to_invoice(world: World) -> None:
    acme = _taxed(world, dollars="9")
    totals = 0
    for month in ("2026-11", "2026-12", "2027-01", "2027-02"):
        _ask(world, words=333, times=1)

        closed = _close(world, acme, read_month(month, time_zone="UTC"))

        totals += read_decimal(closed.invoice.total)
        taken = 9 * 10**12 - world.balance().total.picos
        assert totals == taken
        rounded = read_decimal(closed.invoice.sections[0].rounding_carried_forward)
        assert abs(rounded) <= 5 * 10**9
        assert _balance(world, LedgerAccount("rounding", None, USD)) == rounded


def _taxed(world: World, *, dollars: str) -> Organisation:
    made = replace(world.organisation(dollars=dollars), tax_ppm=TAX_PPM)
    world.stores.access.update_organisation(made)
    return made


def _ask(world: World, *, times: int, words: int = 2, prompt: int = 7, key: str = "acme") -> None:
    """Answers of the same price, settled; what is asked is short."""
    world.upstream.context_tokens_max = 10**6
    world.upstream.script = Script(words=("w",) * words, prompt_tokens=prompt)
    for _ in range(times):
        answered = world.chat(key, max_tokens=words)
        assert answered.error is None, answered.error
    world.settle()


def _close(
    world: World,
    organisation: Organisation,
    period: Period,
    *,
    command_id: str | None = None,
) -> Closed:
    """Close a period in the first minute after it."""
    world.clock.moment = max(world.clock.now(), period.end + timedelta(minutes=1))
    command = _command(world, command_id)
    return close_period(world.stores.books, organisation, period=period, command=command)


def _command(world: World, command_id: str | None = None) -> Command:
    return new_command(clock=world.clock, actor="test", reason="because", command_id=command_id)


def _ledger(world: World) -> dict[str, int]:
    with world.stores.audit.snapshot() as snapshot:
        return dict(snapshot.balances())


def _balance(world: World, account: LedgerAccount) -> int:
    return _ledger(world).get(account.id, 0)


def _invoices(world: World) -> list[str]:
    with world.stores.invoices.snapshot() as snapshot:
        return [issued.canonical for issued in snapshot.invoices()]


def _dollars(dollars: int) -> Money:
    return Money(dollars * 10**12, USD)


def _text(picos: int) -> str:
    whole, rest = divmod(picos, 10**12)
    decimals = f"{rest:012}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def test_a_period_of_moments_between_the_hours_is_exact(world: World) -> None:
    acme = _taxed(world, dollars="1")
    start = datetime(2026, 11, 1, tzinfo=UTC)
    cut = NOW + timedelta(minutes=30, microseconds=1)
    world.clock.moment = cut - timedelta(microseconds=1)
    _ask(world, times=1)
    world.clock.moment = cut
    _ask(world, times=2)

    first = _close(world, acme, Period(start, cut))
    second = _close(world, acme, Period(cut, NOVEMBER.end))

    assert (first.invoice.requests, second.invoice.requests) == (1, 2)
    assert first.invoice.sections[0].usage == _text(ANSWER)
    assert {line.used_in for line in second.invoice.sections[0].lines} == {None}
