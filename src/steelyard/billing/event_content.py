"""Checks what an event's text fields say, so that nothing that is no event can stop the worker."""

from steelyard.errors import Failure
from steelyard.metering.usage import METERS
from steelyard.metering.usage_event import UsageEvent
from steelyard.money import AmountMalformed, CurrencyUnknown, read_currency, read_decimal
from steelyard.timestamp import read_timestamp

COUNT_MAX = 2**63 - 1


class EventMalformed(Failure):
    """The event has a field that cannot be what it is called."""

    code = "event_malformed"


def check_content(event: UsageEvent) -> None:
    """Raise EventMalformed unless numbers are numbers, moments moments and meters meters."""
    record = event.data
    try:
        _check_count(event.sequence, "sequence")
        for meter, count in record.meters.items():
            _check_count(count, meter)
            if meter not in METERS:
                raise EventMalformed(f"unknown meter {meter!r}")
        for amount in (record.amount, record.held):
            if read_decimal(amount) < 0:
                raise EventMalformed(f"the amount {amount} is negative")
        read_currency(record.currency)
        for moment in (event.time, record.admitted_at, record.ended_at):
            read_timestamp(moment)
    except (AmountMalformed, CurrencyUnknown, ValueError) as error:
        raise EventMalformed(str(error)) from error


def _check_count(text: str, name: str) -> None:
    is_number = text.isascii() and text.isdigit() and len(text) < 20
    if not is_number or not 1 <= int(text) <= COUNT_MAX:
        raise EventMalformed(f"{name} is {text!r}, not a positive whole number")
