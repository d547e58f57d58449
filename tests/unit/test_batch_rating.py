"""Rating a batch says of each event what rating it alone says, faults included."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.billing.batch_rating import BatchRating, Rated
from steelyard.billing.event_rating import EventNotRateable, rate_record
from steelyard.metering.usage_event import UsageRecord
from steelyard.pricing.price_book import canonical_bytes
from steelyard.pricing.price_book_yaml import read_price_book
from tests.unit.test_outbox import a_record
from tests.unit.test_rating import DOCUMENT

PLAIN = json.loads(
    canonical_bytes(
        read_price_book(
            """
schema: steelyard.price-book/v1
name: plain
currency: USD
effective_from: 2026-01-01T00:00:00Z
models:
  - match: "m*"
    prices:
      input.text: { amount: 0.5, per: 1 }
      output.text: { amount: 0, per: 1M }
  - match: calls
    prices:
      call: { amount: 1, per: 1k }
"""
        )
    )
)
DOCUMENTS = {"tiers": DOCUMENT, "plain": PLAIN}
COUNTS = st.integers(1, 600_000) | st.integers(10**20, 10**21)
METERS = ("input.text", "input.text.cache_read", "output.text", "output.text.reasoning", "call")


def _alone(record: UsageRecord) -> Rated | None:
    document = DOCUMENTS.get(record.price_version)
    if document is None:
        return None
    try:
        lines = rate_record(record, document=document)
    except EventNotRateable:
        return None
    sheet = tuple((line.meter, line.picos_per_unit) for line in lines)
    counts = tuple(line.count for line in lines)
    return Rated(sheet, counts, sum(line.picos for line in lines), None)


@st.composite
def records(draw: st.DrawFn) -> UsageRecord:
    counts = draw(st.dictionaries(st.sampled_from(METERS), COUNTS, max_size=4))
    text = {meter: str(count) for meter, count in counts.items()}
    if text and draw(st.integers(0, 9)) == 0:
        text[next(iter(text))] = draw(st.sampled_from(["", "-1", "1.5", " 1", "1_0", "x", "١"]))
    return a_record(
        price_version=draw(st.sampled_from(["tiers", "plain", "unknown"])),
        model_served=draw(st.sampled_from(["m", "m2", "calls", "other"])),
        currency=draw(st.sampled_from(["USD", "USD", "USD", "EUR"])),
        meters=text,
    )


@given(st.lists(records(), max_size=30))
def test_a_batch_is_rated_as_its_events_are_alone(batch: list[UsageRecord]) -> None:
    rated = BatchRating(DOCUMENTS).rate(batch)

    agreed = [row if row.complaint is None else None for row in rated]
    assert agreed == [_alone(record) for record in batch]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"price_version": "unknown"}, "no price version unknown"),
        ({"model_served": "other"}, "'other'"),
        ({"currency": "EUR"}, "priced in USD, booked in EUR"),
        ({"meters": {"input.text": "1", "call": "1"}}, "'call'"),
        ({"meters": {"input.text": "1.5"}}, "whole"),
    ],
)
def test_an_event_that_cannot_be_rated_says_why_and_harms_no_other(
    changes: dict[str, object], complaint: str
) -> None:
    good = a_record(price_version="plain", model_served="m", meters={"input.text": "3"})
    bad = a_record(**{"price_version": "plain", "model_served": "m", **changes})

    before, fault, after = BatchRating(DOCUMENTS).rate([good, bad, good])

    assert (
        before
        == after
        == Rated((("input.text", 500_000_000_000),), (3,), 3 * 500_000_000_000, None)
    )
    assert fault.lines == []
    assert complaint in (fault.complaint or "")
