"""Windows of budgets, in the organisation's time zone."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from steelyard.access.budget import Budget, BudgetPeriod
from steelyard.access.tenant import (
    TaxMalformed,
    TimeZoneUnknown,
    read_tax,
    read_time_zone,
    write_tax,
)
from steelyard.money import Currency

MONTHLY = Budget(
    id="budget",
    organisation_id="acme",
    scope="organisation",
    scope_id="acme",
    unit="money",
    period="month",
    amount=1,
    is_hard=True,
    currency=Currency("USD"),
    time_zone="Asia/Shanghai",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("period", "time_zone", "moment", "window", "renews"),
    [
        ("month", "Asia/Shanghai", "2026-11-30T15:59:59", "2026-11", "2026-11-30T16:00:00"),
        ("month", "Asia/Shanghai", "2026-11-30T16:00:00", "2026-12", "2026-12-31T16:00:00"),
        ("day", "Asia/Shanghai", "2026-12-31T16:00:00", "2027-01-01", "2027-01-01T16:00:00"),
        # The day on which the clocks go back has 25 hours, the one on which they go on has 23.
        ("day", "Europe/Berlin", "2026-10-24T22:00:00", "2026-10-25", "2026-10-25T23:00:00"),
        ("day", "Europe/Berlin", "2026-10-25T01:30:00", "2026-10-25", "2026-10-25T23:00:00"),
        ("day", "Europe/Berlin", "2026-03-28T23:00:00", "2026-03-29", "2026-03-29T22:00:00"),
        ("month", "America/New_York", "2026-03-01T04:59:59", "2026-02", "2026-03-01T05:00:00"),
        # A leap day is a day of its month; a month after the 31st is a month.
        ("day", "UTC", "2028-02-29T23:59:59", "2028-02-29", "2028-03-01T00:00:00"),
        ("month", "UTC", "2028-02-29T23:59:59", "2028-02", "2028-03-01T00:00:00"),
        ("day", "Asia/Shanghai", "2028-02-28T16:00:00", "2028-02-29", "2028-02-29T16:00:00"),
        ("month", "UTC", "2027-01-31T12:00:00", "2027-01", "2027-02-01T00:00:00"),
        ("total", "UTC", "2026-03-01T04:59:59", "total", None),
    ],
)
def test_a_window_is_a_day_or_a_month_of_the_organisations_own(
    period: BudgetPeriod, time_zone: str, moment: str, window: str, renews: str | None
) -> None:
    budget = replace(MONTHLY, period=period, time_zone=time_zone)
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)

    renews_at = budget.renews_at(at=at)

    assert budget.window(at=at) == window
    assert renews_at == (datetime.fromisoformat(renews).replace(tzinfo=UTC) if renews else None)


def test_the_window_after_one_begins_when_it_renews() -> None:
    for period in ("day", "month"):
        for hour in range(0, 24 * 70, 5):
            budget = replace(MONTHLY, period=period, time_zone="Europe/Berlin")
            at = datetime.fromtimestamp(1_790_000_000 + hour * 3_600, UTC)

            renews_at = budget.renews_at(at=at)

            assert renews_at is not None
            assert renews_at > at
            assert budget.window(at=renews_at) > budget.window(at=at)


@pytest.mark.parametrize(
    ("text", "ppm"), [("0", 0), ("19", 190_000), ("7.7", 77_000), ("100", 10**6), ("0.0001", 1)]
)
def test_a_tax_is_read_exactly_and_written_back(text: str, ppm: int) -> None:
    assert read_tax(text) == ppm
    assert write_tax(ppm) == text


@pytest.mark.parametrize(
    "text", ["", "-1", "100.0001", "101", "1e1", "19%", "0.00001", "nan", "１９", "019", "1."]
)
def test_a_tax_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(TaxMalformed):
        read_tax(text)


@pytest.mark.parametrize("text", ["", "Mars/Olympus", "../UTC", "America", "UTC+1\x00", "/etc"])
def test_an_unknown_time_zone_is_refused(text: str) -> None:
    with pytest.raises(TimeZoneUnknown):
        read_time_zone(text)
