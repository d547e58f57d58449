"""The gateway, the worker and the verifier rate by three codes of their own, and always agree."""

import json
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.billing.authorization import (
    affordable_output_tokens,
    highest_charge,
    highest_charge_within,
)
from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.event_rating import EventNotRateable, rate_record
from steelyard.metering.usage import METERS, Usage
from steelyard.metering.usage_event import UsageRecord, write_meters
from steelyard.money import Money
from steelyard.pricing.price_book import (
    ModelPrices,
    PriceNotFound,
    canonical_bytes,
    canonical_document,
    read_canonical,
)
from steelyard.pricing.rating import rate_usage
from steelyard.timestamp import write_timestamp
from tests.property.dense_price_books import dense_book, dense_moment, dense_usage
from tests.property.price_books import MOMENTS, TEXT, USD, Case, cases, entries
from tests.unit.test_outbox import a_record

Lines = list[tuple[str, int, int]]
FEW = st.integers(0, 300_000)


def _record(case: Case, version: str) -> UsageRecord:
    return a_record(
        model_served="m",
        price_version=version,
        admitted_at=write_timestamp(case.moment),
        meters=write_meters(case.usage),
        batch_id="b" if case.is_batch else None,
    )


def _by_gateway(case: Case) -> Lines | None:
    listed = read_canonical(dict(case.document)).models[0].chosen(is_batch=case.is_batch)
    prices = listed.at(case.moment)
    try:
        charge = rate_usage(case.usage, prices=prices, currency=USD)
    except PriceNotFound:
        return None
    return [(line.meter, line.count, line.picos_per_unit) for line in charge.lines]


def _by_verifier(case: Case) -> Lines | None:
    try:
        lines = rate_record(_record(case, ""), document=case.document)
    except EventNotRateable:
        return None
    return [(line.meter, line.count, line.picos_per_unit) for line in lines]


@settings(max_examples=60)
@given(st.lists(cases(), min_size=1, max_size=3))
def test_three_ratings_agree_or_all_refuse(batch: list[Case]) -> None:
    documents = {str(number): case.document for number, case in enumerate(batch)}
    records = [_record(case, str(number)) for number, case in enumerate(batch)]

    by_worker = BatchRating(documents).rate(records)

    worker_lines = [list(row.lines) if row.complaint is None else None for row in by_worker]
    assert worker_lines == [_by_verifier(case) for case in batch]
    assert worker_lines == [_by_gateway(case) for case in batch]
    for row in by_worker:
        assert row.picos == sum(count * picos for _, count, picos in row.lines)


@pytest.mark.parametrize("seed", range(4))
def test_three_ratings_agree_at_every_edge(seed: int) -> None:
    random = Random(seed)
    rated_count = 0
    for _ in range(150):
        book = dense_book(random)
        document, entry = canonical_document(book), book.models[0]
        batch = [
            Case(
                book,
                document,
                dense_usage(random),
                dense_moment(random, [*entry.meters.values()]),
                is_batch=random.random() < 0.3,
            )
            for _ in range(20)
        ]

        by_worker = BatchRating({"": document}).rate([_record(case, "") for case in batch])

        worker_lines = [list(row.lines) if row.complaint is None else None for row in by_worker]
        assert worker_lines == [_by_verifier(case) for case in batch]
        assert worker_lines == [_by_gateway(case) for case in batch]
        rated_count += sum(lines is not None for lines in worker_lines)
    assert rated_count > 1_000


@pytest.mark.parametrize("seed", range(2))
def test_no_charge_is_above_its_hold_at_any_edge(seed: int) -> None:
    random = Random(seed)
    held_count = 0
    for _ in range(2_000):
        entry = dense_book(random).models[0]
        prices = entry.at(dense_moment(random, [*entry.meters.values()]))
        counts = {m: n for m, n in dense_usage(random).counts.items() if m in TEXT}
        usage = Usage(counts)
        if counts and prices.bearer_of("call"):
            usage = usage.with_one("call")
        try:
            held = highest_charge(
                input_tokens=usage.input_tokens + random.choice([0, 1]),
                output_tokens=usage.output_tokens + random.choice([0, 1]),
                prices=prices,
                currency=USD,
            )
        except PriceNotFound:
            continue
        held_count += 1
        charged = rate_usage(usage, prices=prices, currency=USD).total
        assert charged.picos <= held.picos, (entry, usage)
    assert held_count > 500


@given(cases())
def test_a_book_of_any_features_reads_back_to_the_same_bytes(case: Case) -> None:
    document = json.loads(canonical_bytes(case.book))

    assert canonical_bytes(read_canonical(document)) == canonical_bytes(case.book)


@settings(max_examples=60)
@given(entries(meters=st.sampled_from([*TEXT, "call"])), MOMENTS, FEW, FEW, FEW, FEW, FEW)
def test_no_text_answer_costs_more_than_its_hold(  # noqa: PLR0917
    entry: ModelPrices,
    moment: datetime,
    fresh: int,
    cached: int,
    said: int,
    thought: int,
    spare: int,
) -> None:
    prices = entry.at(moment)
    usage = Usage(
        {
            meter: count
            for meter, count in zip(TEXT, (fresh, cached, said, thought), strict=True)
            if count
        }
    )
    if usage.counts and prices.bearer_of("call"):
        usage = usage.with_one("call")
    try:
        held = highest_charge(
            input_tokens=fresh + cached + spare,
            output_tokens=said + thought + spare,
            prices=prices,
            currency=USD,
        )
    except PriceNotFound:
        return

    charged = rate_usage(usage, prices=prices, currency=USD)

    assert charged.total.picos <= held.picos


@settings(max_examples=50)
@given(entries(), MOMENTS, st.dictionaries(st.sampled_from(sorted(METERS)), FEW, max_size=6))
def test_no_usage_within_any_bounds_costs_more_than_they_say(
    entry: ModelPrices, moment: datetime, counts: dict[str, int]
) -> None:
    prices = entry.at(moment)
    usage = Usage({meter: count for meter, count in counts.items() if count})
    try:
        bound = highest_charge_within(counts, prices=prices, currency=USD)
    except PriceNotFound:
        return

    assert rate_usage(usage, prices=prices, currency=USD).total.picos <= bound.picos


@settings(max_examples=50)
@given(entries(meters=st.sampled_from(TEXT)), FEW, st.integers(0, 10**14))
def test_what_is_affordable_is_the_most_that_is_covered(
    entry: ModelPrices, input_tokens: int, available: int
) -> None:
    prices = entry.at(datetime(2026, 11, 24, 12, tzinfo=UTC))

    def cost(output_tokens: int) -> int:
        return highest_charge(
            input_tokens=input_tokens, output_tokens=output_tokens, prices=prices, currency=USD
        ).picos

    try:
        tokens = affordable_output_tokens(
            Money(available, USD), input_tokens=input_tokens, prices=prices
        )
    except PriceNotFound:
        return

    assert tokens == 0 or cost(tokens) <= available
    assert tokens == 2**31 or cost(tokens + 1) > available
