"""Months begin at midnight of the organisation's time zone, whatever its clocks do."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from steelyard.billing.billing_period import PeriodMalformed, month_of, name_month, read_month
from steelyard.billing.statement import Period


@pytest.mark.parametrize(
    ("month", "zone", "start", "hours"),
    [
        ("2026-10", "Europe/Berlin", datetime(2026, 9, 30, 22, tzinfo=UTC), 31 * 24 + 1),
        ("2026-03", "Europe/Berlin", datetime(2026, 2, 28, 23, tzinfo=UTC), 31 * 24 - 1),
        ("2028-02", "Europe/Berlin", datetime(2028, 1, 31, 23, tzinfo=UTC), 29 * 24),
        ("2027-02", "UTC", datetime(2027, 2, 1, tzinfo=UTC), 28 * 24),
        ("2026-12", "Asia/Kolkata", datetime(2026, 11, 30, 18, 30, tzinfo=UTC), 31 * 24),
        ("2026-11", "America/New_York", datetime(2026, 11, 1, 4, tzinfo=UTC), 30 * 24 + 1),
    ],
)
def test_a_month_is_that_of_the_time_zone(
    month: str, zone: str, start: datetime, hours: int
) -> None:
    period = read_month(month, time_zone=zone)

    assert period == Period(start, start + timedelta(hours=hours))
    assert name_month(period, time_zone=zone) == month
    assert month_of(period.end - timedelta(microseconds=1), time_zone=zone) == month
    assert month_of(period.end, time_zone=zone) != month


def test_months_follow_each_other_without_a_gap() -> None:
    months = [f"{year}-{number:02}" for year in (2026, 2027, 2028) for number in range(1, 13)]

    periods = [read_month(month, time_zone="Australia/Lord_Howe") for month in months]

    assert all(a.end == b.start for a, b in pairwise(periods))


@pytest.mark.parametrize("text", ["2026", "2026-13", "2026-00", "0000-01", "26-10", "2026-1", "x"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(PeriodMalformed):
        read_month(text, time_zone="UTC")


def test_a_part_of_a_month_has_no_name() -> None:
    whole = read_month("2026-10", time_zone="UTC")

    assert name_month(Period(whole.start, whole.end - timedelta(days=1)), time_zone="UTC") is None
