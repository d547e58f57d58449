"""The worker's own rating of an event, from the published bytes of the price book.

It shares no code with the gateway's rating on purpose: the two must agree to the last pico before
money moves, so that a bug in one of them cannot bill anybody. This one computes with exact
fractions of the decimal strings as they were published.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from steelyard.errors import Failure
from steelyard.metering.usage_event import UsageRecord
from steelyard.pricing.rating import ChargeLine

PICOS = 10**12


class EventNotRateable(Failure):
    """The event cannot be priced from the price version that it names."""

    code = "event_not_rateable"


def rate_record(record: UsageRecord, *, document: Mapping[str, Any]) -> list[ChargeLine]:
    """Price each meter of the record; raises EventNotRateable rather than leave one out."""
    if document["currency"] != record.currency:
        raise EventNotRateable(f"priced in {document['currency']}, booked in {record.currency}")
    prices = _prices(record.model_served, document["models"])
    prompt = sum(Fraction(n) for meter, n in record.meters.items() if meter.startswith("input."))
    return [
        _line(meter, count, _nearest(meter, prices), prompt=prompt)
        for meter, count in sorted(record.meters.items())
    ]


def _prices(model: str, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    exact = [entry for entry in entries if entry["match"] == model]
    pattern = [entry for entry in entries if fnmatch.fnmatchcase(model, entry["match"])]
    for entry in exact + pattern:
        return entry["prices"]
    raise EventNotRateable(f"the price version does not cover the model {model!r}")


def _nearest(meter: str, prices: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The price of the meter, or of the longest part of its name that has one."""
    parts = meter.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((prices[name] for name in names if name in prices), None)


def _line(
    meter: str, count: str, price: Mapping[str, Any] | None, *, prompt: Fraction | int
) -> ChargeLine:
    if price is None:
        raise EventNotRateable(f"the price version does not cover the meter {meter!r}")
    unit = Fraction(_amount(price, prompt=prompt)) * PICOS / price["per"]
    quantity = Fraction(count)
    if unit.denominator != 1 or quantity.denominator != 1 or quantity < 0:
        raise EventNotRateable(f"{meter}: {count} units at {price} do not give whole picos")
    return ChargeLine(meter, quantity.numerator, unit.numerator)


def _amount(price: Mapping[str, Any], *, prompt: Fraction | int) -> str:
    """The amount of the highest tier that the prompt has passed, or the base amount."""
    passed = [tier for tier in price.get("tiers", ()) if prompt > tier["above"]]
    if not passed:
        return price["amount"]
    return max(passed, key=lambda tier: tier["above"])["amount"]
