"""Months: a month of an organisation, in its own time zone, as a period."""

import re
from datetime import UTC, datetime
from typing import Final

from steelyard.billing.statement import Period
from steelyard.errors import Refusal
from steelyard.time_zone import load_time_zone
from steelyard.timestamp import read_timestamp

_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)
YEAR_MIN: Final = 2000
YEAR_MAX: Final = 9999


class PeriodMalformed(Refusal):
    """A period is a month such as 2026-10, or two RFC 3339 moments, the earlier one first."""

    code = "period_malformed"


def read_month(text: str, *, time_zone: str) -> Period:
    """From midnight of the first to midnight after the last, where the organisation is."""
    match = _MONTH.fullmatch(text)
    if match is None or not YEAR_MIN <= int(match[1]) < YEAR_MAX:
        raise PeriodMalformed(f"{text!r} is no month; write one such as 2026-10")
    year, month = int(match[1]), int(match[2])
    following = (year, month + 1) if month < 12 else (year + 1, 1)
    return Period(_midnight(year, month, time_zone), _midnight(*following, time_zone))


def read_period(*, month: str | None, start: str | None, end: str | None, time_zone: str) -> Period:
    """A month, or what lies between two moments; raises PeriodMalformed."""
    if month is not None and start is None and end is None:
        return read_month(month, time_zone=time_zone)
    if month is not None or start is None or end is None:
        raise PeriodMalformed("say a month, or both --from and --to")
    try:
        first, last = read_timestamp(start), read_timestamp(end)
    except ValueError as error:
        raise PeriodMalformed(str(error)) from error
    if first >= last:
        raise PeriodMalformed("a period ends after it starts")
    return Period(first, last)


def _midnight(year: int, month: int, time_zone: str) -> datetime:
    return datetime(year, month, 1, tzinfo=load_time_zone(time_zone)).astimezone(UTC)
