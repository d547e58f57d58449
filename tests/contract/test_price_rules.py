"""What a request is priced by, from admission to the verified books."""

from datetime import timedelta
from typing import Any

import pytest

from steelyard.billing.statement import Period, make_statement
from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import read_decimal
from tests.world import INPUT_PRICE, NOW, OUTPUT_PRICE, World

BOOK = """
schema: steelyard.price-book/v1
name: {name}
currency: USD
effective_from: 2026-01-02T00:00:00Z
{head}
models:
  - match: {match}
    {entry}
    prices:
      input.text: {{ amount: {amount}, per: 1M{rest} }}
      output.text: {{ amount: {amount}, per: 1M }}
      {more}
"""


def _book(name: str, **parts: str) -> str:
    blank = {"head": "", "match": "scripted", "entry": "", "amount": "1", "rest": "", "more": ""}
    return BOOK.format(name=name, **{**blank, **parts})


def _cost(world: World, key: str = "acme", **asked: Any) -> int:
    """What the client is told that one request costs; the books must agree."""
    answered = world.chat(key, **asked)
    assert answered.error is None, answered.error
    world.settle()
    assert world.differences() == []
    return read_decimal(answered.client.usage()["cost"])


def _tokens(world: World) -> tuple[int, int]:
    meters = world.events()[-1].data.meters
    return int(meters["input.text"]), int(meters["output.text"])


def test_a_contract_goes_before_the_plan_and_that_before_the_list(world: World) -> None:
    world.organisation(dollars="1", plan="gold")
    world.organisation("other", dollars="1", plan="gold")
    world.organisation("third", dollars="1")
    world.publish_prices(_book("gold", head="applies_to: { plan: gold }", amount="3"))
    world.publish_prices(_book("acme", head="applies_to: { organisation: acme }", amount="5"))

    costs = [_cost(world, key) for key in ("acme", "other", "third")]

    tokens_in, tokens_out = _tokens(world)
    assert costs == [
        5_000_000 * (tokens_in + tokens_out),
        3_000_000 * (tokens_in + tokens_out),
        INPUT_PRICE * tokens_in + OUTPUT_PRICE * tokens_out,
    ]


def test_a_model_that_the_contract_does_not_name_has_the_plans_price_or_the_lists(
    world: World,
) -> None:
    world.organisation(dollars="1", plan="gold")
    contract = _book("acme", head="applies_to: { organisation: acme }", match="others-*")
    world.publish_prices(contract)

    by_list = _cost(world)
    world.publish_prices(_book("gold", head="applies_to: { plan: gold }", amount="3"))
    by_plan = _cost(world)

    tokens_in, tokens_out = _tokens(world)
    assert by_list == INPUT_PRICE * tokens_in + OUTPUT_PRICE * tokens_out
    assert by_plan == 3_000_000 * (tokens_in + tokens_out)


def test_a_discounted_book_charges_its_rounded_amounts(world: World) -> None:
    world.organisation(dollars="1")
    head = "applies_to: { organisation: acme }\nextends: world\nadjust: { percent: -12.5 }"
    world.publish_prices(_book("acme", head=head, match="others-*"))

    cost = _cost(world)

    tokens_in, tokens_out = _tokens(world)
    assert cost == INPUT_PRICE * 7 // 8 * tokens_in + OUTPUT_PRICE * 7 // 8 * tokens_out


def test_an_answered_request_counts_one_call_where_calls_are_priced(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(_book("calls", more="call: { amount: 0.001, per: 1 }"))

    whole = _cost(world)
    cut_short = world.chat(stream=True, leaves_after=1)

    world.settle()
    assert world.differences() == []
    assert [event.data.meters["call"] for event in world.events()] == ["1", "1"]
    tokens_in, tokens_out = (
        int(world.events()[0].data.meters[meter]) for meter in ("input.text", "output.text")
    )
    assert whole == 10**9 + 1_000_000 * (tokens_in + tokens_out)
    assert cut_short.error is None


def test_an_answer_that_is_not_charged_counts_no_call_and_no_minimum(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(
        _book("calls", entry="minimum: 0.01", more="call: { amount: 0.001, per: 1 }")
    )

    world.upstream.script = Script(fails_after_words=0)
    world.chat(stream=True)

    world.settle()
    record = world.events()[-1].data
    assert (record.end_cause, record.meters, record.amount) == (
        "upstream_failed_before_first_token",
        {},
        "0",
    )
    assert world.differences() == []


def test_a_cheap_request_costs_the_minimum_and_says_so_in_a_line(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(_book("least", entry="minimum: 0.01"))

    cost = _cost(world)

    period = Period(NOW - timedelta(days=1), NOW + timedelta(days=9_999))
    with world.stores.reports.snapshot() as snapshot:
        statement = make_statement(snapshot, world.tenants["acme"], period=period)
    lines = {line.meter: line for line in statement.lines}
    assert cost == 10**10
    assert lines["minimum"].count == 1
    assert sum(line.picos for line in lines.values()) == 10**10


@pytest.mark.parametrize(
    ("opens", "closes", "is_open"),
    [("12:00", "13:00", True), ("11:00", "12:00", False), ("23:00", "12:01", True)],
)
def test_the_moment_of_admission_decides_on_the_window(
    world: World, *, opens: str, closes: str, is_open: bool
) -> None:
    world.organisation(dollars="1")
    window = f', windows: [{{ from: "{opens}", to: "{closes}", amount: 9 }}]'
    world.publish_prices(_book("windows", rest=window))

    cost = _cost(world)

    tokens_in, tokens_out = _tokens(world)
    assert cost == 1_000_000 * (tokens_in * (9 if is_open else 1) + tokens_out)


def test_a_formula_covers_the_meters_that_it_names(world: World) -> None:
    world.organisation(dollars="1")
    world.publish_prices(
        """
schema: steelyard.price-book/v1
name: formula
currency: USD
effective_from: 2026-01-02T00:00:00Z
models:
  - match: scripted
    equivalent_tokens:
      output.text.equivalent_tokens: "input.text + 3 * output.text"
    prices:
      output.text.equivalent_tokens: { amount: 1, per: 1 }
"""
    )

    poor = world.chat()
    world.top_up(world.tenants["acme"], "1000")
    cost = _cost(world)

    tokens_in, tokens_out = _tokens(world)
    assert poor.error is not None
    assert poor.error.code == "insufficient_funds"
    assert cost == 10**12 * (tokens_in + 3 * tokens_out)
