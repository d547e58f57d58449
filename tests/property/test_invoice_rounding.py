"""However many invoices there are, and of whatever amounts, they never drift from the ledger."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from steelyard.access.tenant import Organisation
from steelyard.billing.invoice import AdjustmentRow, InvoiceFacts, UsageRow, bill_payers
from steelyard.billing.statement import Period
from steelyard.money import (
    Currency,
    Money,
    divide_half_even,
    minor_digits,
    round_half_even_to_minor_unit,
    write_minor,
)

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
CURRENCIES = st.sampled_from(["USD", "EUR", "JPY", "KWD", "CLF"]).map(Currency)
PICOS = st.integers(0, 10**16)


@st.composite
def months(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Usage, of which so much was paid by promotional and by paid money, and a refund of that."""
    usage = draw(PICOS)
    promotional = draw(st.integers(0, usage))
    paid = draw(st.integers(0, usage - promotional))
    return usage, promotional, paid, draw(PICOS)


@given(CURRENCIES, st.integers(0, 10**6), st.lists(months(), max_size=12))
def test_all_totals_are_the_ledger_with_at_most_half_a_minor_unit(
    currency: Currency, tax_ppm: int, history: list[tuple[int, int, int, int]]
) -> None:
    organisation = Organisation("o", "acme", currency, MOMENT, tax_ppm=tax_ppm)
    totals = taken = carried = 0

    for usage, promotional, paid, refund in history:
        facts = _facts(organisation, usage, promotional, paid, refund, carried=carried)
        bill = bill_payers(facts)["o"]
        totals += bill.total
        taken += bill.net + bill.tax
        carried = bill.carried_forward

        assert bill.net == usage - bill.not_covered - bill.promotional - bill.adjustments
        assert totals - taken == carried
        assert 2 * abs(carried) <= 10 ** (12 - minor_digits(currency))
        assert write_minor(Money(bill.total, currency))


@given(CURRENCIES, st.integers(-(10**30), 10**30))
def test_rounding_says_exactly_what_it_added(currency: Currency, picos: int) -> None:
    rounded, added = round_half_even_to_minor_unit(Money(picos, currency))

    unit = 10 ** (12 - minor_digits(currency))
    assert rounded.picos - added.picos == picos
    assert rounded.picos % unit == 0
    assert 2 * abs(added.picos) < unit or rounded.picos // unit % 2 == 0


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
def test_division_rounds_as_the_fraction_does(dividend: int, divisor: int) -> None:
    from fractions import Fraction

    assert divide_half_even(dividend, divisor) == round(Fraction(dividend, divisor))


def _facts(
    organisation: Organisation,
    usage: int,
    promotional: int,
    paid: int,
    refund: int,
    *,
    carried: int,
) -> InvoiceFacts:
    line = UsageRow("o", "d", None, "k", "m", "input.text", 1, usage, usage, None)
    adjustment = AdjustmentRow("o", "a", "refund", "d", "e", "", MOMENT, refund, {"paid": refund})
    return InvoiceFacts(
        organisation=organisation,
        number="acme-0001",
        period=Period(MOMENT, MOMENT),
        issued_at=MOMENT,
        requests=1,
        payers={"o": "acme"},
        usage=[line],
        paid_by={("o", "promotional"): promotional, ("o", "paid"): paid},
        adjustments=[adjustment],
        brought_forward={"o": carried},
        price_versions=[],
    )
