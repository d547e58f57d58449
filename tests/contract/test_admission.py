"""What is refused before anything is held, and what is held."""

import pytest

from steelyard.billing.hold_decisions import HoldDeclined
from steelyard.gateway.upstreams.scripted import Script
from steelyard.money import Money
from tests.conftest import MakeSettings
from tests.world import INPUT_PRICE, OUTPUT_PRICE, USD, World


def _dollars(picos: int) -> str:
    return f"{picos / 10**12:.12f}"


def test_no_money_is_refused_with_402_and_nothing_is_asked_upstream(world: World) -> None:
    world.organisation()

    answered = world.chat()

    assert answered.status == 402
    assert answered.error is not None
    assert answered.error.code == "insufficient_funds"
    assert world.upstream.bodies == []
    assert world.balance().held.picos == 0


def test_a_thin_balance_is_counted_exactly_before_it_is_refused(world: World) -> None:
    exactly_enough = 7 * INPUT_PRICE + 20 * OUTPUT_PRICE
    world.organisation(dollars=_dollars(exactly_enough))

    answered = world.chat(max_tokens=20)

    assert answered.status == 200
    assert world.upstream.bodies[0]["max_prompt_tokens"] == 7


def test_one_pico_too_little_is_refused_and_says_what_is_affordable(world: World) -> None:
    world.organisation(dollars=_dollars(7 * INPUT_PRICE + 20 * OUTPUT_PRICE - 1))

    answered = world.chat(max_tokens=20)

    assert answered.status == 402
    assert "at most 19 tokens" in str(answered.error)


def test_without_a_limit_of_its_own_an_answer_is_as_long_as_the_balance_allows(
    world: World,
) -> None:
    world.organisation(dollars=_dollars(7 * INPUT_PRICE + 33 * OUTPUT_PRICE + 1))

    answered = world.chat(max_tokens=None)

    assert answered.status == 200
    assert world.upstream.bodies[0]["max_tokens"] == 33


def test_a_department_with_its_own_balance_spends_nothing_of_its_organisation(
    world: World,
) -> None:
    organisation = world.organisation(dollars="1")
    department = world.department(organisation, "research")
    world.top_up(department, "0.5")

    world.chat("research")
    world.settle()

    assert world.balance("acme").total.picos == 10**12
    assert world.balance("acme/research").total.picos < 10**12 // 2
    assert world.statement("acme/research").requests == 1


@pytest.mark.parametrize(("tokens", "status"), [(4096, 200), (4097, 413)])
def test_the_input_limit_is_the_last_token_inside_and_the_first_outside(
    tokens: int, status: int, sqlite_world: World
) -> None:
    sqlite_world.organisation(dollars="1")
    sqlite_world.upstream.script = Script(prompt_tokens=tokens)

    answered = sqlite_world.chat(messages=[{"role": "user", "content": "x" * 5000}])

    assert answered.status == status
    if answered.error:
        assert "4097 tokens; at most 4096" in str(answered.error)


def test_an_absurd_prompt_is_refused_without_a_count(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    sqlite_world.upstream.script = Script(prompt_tokens=-1)

    answered = sqlite_world.chat(messages=[{"role": "user", "content": "x" * 1_000_000}])

    assert answered.status == 413
    assert "at least 62500 tokens" in str(answered.error)


def test_a_key_gets_its_requests_of_a_minute_and_not_one_more(make_settings: MakeSettings) -> None:
    with World(make_settings(requests_per_minute=3)) as world:
        world.organisation(dollars="1")

        statuses = [world.chat().status for _ in range(4)]

        assert statuses == [200, 200, 200, 429]


def test_a_model_without_a_price_is_not_served(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    sqlite_world.upstream.model = "unpriced"

    answered = sqlite_world.chat(model="unpriced")

    assert answered.status == 503
    assert answered.error is not None
    assert answered.error.code == "price_not_found"


def test_an_unknown_model_is_not_found(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")

    answered = sqlite_world.chat(model="nonsense")

    assert answered.status == 404
    assert "there is scripted" in str(answered.error)


def test_an_upstream_that_is_away_is_503_and_charges_nothing(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    sqlite_world.upstream.script = Script(is_away=True)

    answered = sqlite_world.chat()

    assert answered.status == 503
    assert sqlite_world.balance().total.picos == 10**12


def test_a_new_price_applies_from_its_date_on_and_pinned_ones_stay(sqlite_world: World) -> None:
    sqlite_world.organisation(dollars="1")
    first = sqlite_world.chat().client.usage()["cost"]
    sqlite_world.publish_prices(
        """
schema: steelyard.price-book/v1
name: dearer
currency: USD
effective_from: 2026-11-24T12:00:01Z
models:
  - match: "scrip*"
    prices:
      input.text: { amount: 4, per: 1M }
      output.text: { amount: 20, per: 1M }
"""
    )

    before_its_date = sqlite_world.chat().client.usage()["cost"]
    sqlite_world.clock.advance(seconds=1)
    after_its_date = sqlite_world.chat().client.usage()["cost"]
    sqlite_world.settle()

    assert (first, before_its_date, after_its_date) == ("0.000034", "0.000034", "0.000068")
    assert sqlite_world.differences() == []


def test_a_declined_hold_says_what_is_available() -> None:
    declined = HoldDeclined(available=Money(5, USD))

    assert "0.000000000005 USD" in str(declined)
