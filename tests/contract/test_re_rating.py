"""Usage of the past at other prices: proposed, approved once, adjusted, never edited."""

from datetime import timedelta

import pytest

from steelyard.billing.adjustments import Adjusted
from steelyard.billing.commands import new_command
from steelyard.billing.re_rating import (
    NothingToReRate,
    NotRateableAgain,
    ReRatingApproved,
    ReRatingRun,
    ReRatingScope,
    ReRatingStale,
    approve_re_rating,
    propose_re_rating,
    read_run,
)
from steelyard.billing.refund import refund_event
from steelyard.gateway.upstreams.scripted import Script
from steelyard.ledger.store import InsufficientFunds
from steelyard.ledger.transaction import Command
from tests.world import INPUT_PRICE, NOW, OUTPUT_PRICE, World

CORRECTED = """
schema: steelyard.price-book/v1
name: {name}
currency: USD
effective_from: 2027-01-01T00:00:00Z
models:
  - match: {match}
    prices:
      input.text: {{ amount: {input}, per: 1M }}
      output.text: {{ amount: {output}, per: 1M }}
"""
COST = 7 * INPUT_PRICE + 3 * OUTPUT_PRICE


def test_cheaper_usage_comes_back_to_where_it_was_taken_from(world: World) -> None:
    _use(world, times=3)
    before = world.balance().total.picos
    run = _propose(world, input=1, output=5)

    assert world.balance().total.picos == before
    adjusted = _approve(world, run)

    assert [entry.amount.picos for entry in adjusted] == [3 * COST // 2]
    assert world.balance().total.picos == before + 3 * COST // 2
    assert world.differences() == []


def test_dearer_usage_is_charged_once_more(world: World) -> None:
    _use(world, times=2)
    before = world.balance().total.picos

    _approve(world, _propose(world, input=4, output=20))

    assert world.balance().total.picos == before - 2 * COST
    assert world.differences() == []


def test_the_difference_is_shown_before_anything_is_booked(world: World) -> None:
    _use(world, times=2)

    proposed = read_run(_propose(world, input=1, output=5))

    row = proposed.rows[0]
    assert (row.events, row.before, row.after) == (2, 2 * COST, COST)
    assert row.model == "scripted"


def test_a_run_is_approved_once(world: World) -> None:
    _use(world, times=1)
    run = _propose(world, input=1, output=5)
    _approve(world, run)
    after = world.balance()

    with pytest.raises(ReRatingApproved):
        _approve(world, run)

    assert world.balance() == after


def test_what_changed_since_the_proposal_makes_it_stale(world: World) -> None:
    _use(world, times=1)
    run = _propose(world, input=1, output=5)
    world.chat()
    world.settle()
    before = world.balance()

    with pytest.raises(ReRatingStale):
        _approve(world, run)

    assert world.balance() == before


def test_a_second_run_starts_from_what_the_first_has_made(world: World) -> None:
    _use(world, times=1)
    paid = 10**12 - world.balance().total.picos
    _approve(world, _propose(world, input=4, output=20, name="dearer"))

    with pytest.raises(NothingToReRate):
        _propose(world, input=4, output=20, name="as-dear")
    _approve(world, _propose(world, input=2, output=10, name="as-before"))

    assert 10**12 - world.balance().total.picos == paid
    assert world.differences() == []


def test_refunded_usage_is_left_alone(world: World) -> None:
    _use(world, times=1)
    event = world.events()[0]
    refund_event(world.stores.books, event.id, picos=None, command=_command(world))

    with pytest.raises(NothingToReRate):
        _propose(world, input=1, output=5)


def test_a_refund_after_re_rating_gives_back_what_it_costs_now(world: World) -> None:
    _use(world, times=1)
    _approve(world, _propose(world, input=1, output=5))

    refund_event(world.stores.books, world.events()[0].id, picos=None, command=_command(world))

    assert world.balance().total.picos == 10**12
    assert world.differences() == []


def test_more_than_the_balance_is_refused_whole(world: World) -> None:
    world.organisation(dollars="0.0003")
    world.chat()
    world.settle()
    run = _propose(world, input=400_000, output=2_000_000)
    before = world.balance()

    with pytest.raises(InsufficientFunds):
        _approve(world, run)

    assert world.balance() == before
    assert _runs(world)[0].approved_at is None


def test_prices_that_do_not_cover_the_usage_are_refused(world: World) -> None:
    _use(world, times=1)

    with pytest.raises(NotRateableAgain, match="scripted"):
        _propose(world, input=1, output=5, match="another-model")


def test_only_usage_in_the_scope_is_priced_again(world: World) -> None:
    _use(world, times=1)
    world.clock.advance(seconds=3600)
    world.chat()
    world.settle()
    later = ReRatingScope(
        world.tenants["acme"].payer_id, NOW + timedelta(minutes=30), NOW + timedelta(hours=2)
    )

    run = _propose(world, input=1, output=5, scope=later)

    assert read_run(run).rows[0].events == 1


def _use(world: World, *, times: int) -> None:
    world.organisation(dollars="1")
    world.upstream.script = Script(words=("a", "b", "c"), prompt_tokens=7)
    for _ in range(times):
        world.chat()
    world.settle()


def _propose(
    world: World,
    *,
    input: int,  # noqa: A002 - the word of the price book
    output: int,
    name: str = "corrected",
    match: str = "scripted",
    scope: ReRatingScope | None = None,
) -> ReRatingRun:
    world.publish_prices(CORRECTED.format(name=name, match=match, input=input, output=output))
    version = next(v for v in world.stores.prices.versions() if v.book.name == name)
    month = ReRatingScope(
        world.tenants["acme"].payer_id, NOW.replace(day=1), NOW + timedelta(days=5)
    )
    run, _ = propose_re_rating(
        world.stores.books,
        scope or month,
        new_version=version.sha256,
        documents=world.stores.audit.price_documents(),
        command=_command(world),
    )
    return run


def _approve(world: World, run: ReRatingRun) -> list[Adjusted]:
    return approve_re_rating(
        world.stores.books,
        run.id,
        documents=world.stores.audit.price_documents(),
        command=_command(world),
    )


def _runs(world: World) -> list[ReRatingRun]:
    with world.stores.books.write() as unit:
        return unit.runs()


def _command(world: World) -> Command:
    return new_command(clock=world.clock, actor="test", reason="test")
