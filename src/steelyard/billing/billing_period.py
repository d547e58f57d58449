"""Billing periods: calendar months of an organisation's time zone, or any other stretch of time."""

import re
from datetime import UTC, datetime
from typing import Final

from steelyard.billing.statement import Period
from steelyard.errors import Refusal
from steelyard.time_zone import load_time_zone
from steelyard.timestamp import read_timestamp

_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
MONTHS_OF_YEAR: Final = 12
# Clocks know the years 1 to 9999, on both sides of UTC.
YEAR_MIN: Final = 2
YEAR_MAX: Final = 9998


class PeriodMalformed(Refusal):
    """A period is a month as 2026-10, or two moments, the first before the second."""

    code = "period_malformed"


def read_month(text: str, *, time_zone: str) -> Period:
    """The calendar month of this name, on the clocks of a time zone; raises PeriodMalformed."""
    found = _MONTH.fullmatch(text)
    if found is None or not YEAR_MIN <= int(found[1]) <= YEAR_MAX:
        raise PeriodMalformed(f"{text!r} is no month; write one as 2026-10")
    year, month = int(found[1]), int(found[2])
    start = _first_moment(year, month, time_zone=time_zone)
    is_last = month == MONTHS_OF_YEAR
    end = _first_moment(year + is_last, 1 if is_last else month + 1, time_zone=time_zone)
    return Period(start, end)


def read_period(*, month: str | None, start: str | None, end: str | None, time_zone: str) -> Period:
    """A month, or what lies between two moments; raises PeriodMalformed."""
    if month is not None and start is None and end is None:
        return read_month(month, time_zone=time_zone)
    if month is not None or start is None or end is None:
        raise PeriodMalformed("say a month, or both --from and --to")
    try:
        first, last = read_timestamp(start), read_timestamp(end)
    except ValueError as error:
        raise PeriodMalformed(f"{error}; write it as 2026-10-01T00:00:00+02:00") from error
    if first >= last:
        raise PeriodMalformed("a period ends after it starts")
    return Period(first, last)


def name_month(period: Period, *, time_zone: str) -> str | None:
    """The name of a period that is a whole calendar month; None for any other."""
    local = period.start.astimezone(load_time_zone(time_zone))
    name = f"{local.year:04}-{local.month:02}"
    return name if read_month(name, time_zone=time_zone) == period else None


def month_of(moment: datetime, *, time_zone: str) -> str:
    """The name of the month that a moment is in."""
    local = moment.astimezone(load_time_zone(time_zone))
    return f"{local.year:04}-{local.month:02}"


def _first_moment(year: int, month: int, *, time_zone: str) -> datetime:
    """Midnight on the first, which is another moment of UTC in summer than in winter."""
    return datetime(year, month, 1, tzinfo=load_time_zone(time_zone)).astimezone(UTC)
