"""The worker's own rating of an event, from the published bytes of the price book.

It shares no code with the gateway's rating on purpose: the two must agree to the last pico before
money moves, so that a bug in one of them cannot bill anybody. This one computes with exact
fractions of the decimal strings as they were published.
"""

import fnmatch
import re
from collections.abc import Container, Mapping, Sequence
from datetime import datetime, time, timedelta
from fractions import Fraction
from itertools import chain
from typing import Any

from steelyard.billing.formula_evaluation import evaluate_formula, formula_meters
from steelyard.errors import Failure
from steelyard.metering.usage_event import UsageRecord
from steelyard.pricing.rating import ChargeLine
from steelyard.time_zone import load_time_zone

PICOS = 10**12
_COUNT = re.compile("[0-9]{1,30}")


class EventNotRateable(Failure):
    """The event cannot be priced from the price version that it names."""

    code = "event_not_rateable"


def rate_record(record: UsageRecord, *, document: Mapping[str, Any]) -> list[ChargeLine]:
    """Price each meter of the record; raises EventNotRateable rather than leave one out."""
    if document["currency"] != record.currency:
        raise EventNotRateable(f"priced in {document['currency']}, booked in {record.currency}")
    entry = _entry(record, document["models"])
    formulas: Mapping[str, str] = entry.get("equivalent_tokens", {})
    named = {name for formula in formulas.values() for name in formula_meters(formula)}
    counts = {meter: _count(meter, text) for meter, text in sorted(record.meters.items())}
    bearers = {meter: _bearer(meter, {*entry["prices"], *named}) for meter in counts}
    derived = _equivalents(formulas, counts, bearers)
    prompt = sum(count for meter, count in counts.items() if _is_prompt_tokens(meter))
    sizes = {"item": counts.get("item", 0)}
    lines = [
        _line(
            meter,
            count,
            entry["prices"][bearer],
            size=sizes.get(bearer, prompt),
            admitted_at=record.admitted_at,
        )
        for meter, count, bearer in [
            *((meter, count, bearers[meter]) for meter, count in counts.items()),
            *((meter, count, meter) for meter, count in derived.items()),
        ]
        if bearer in entry["prices"]
    ]
    return [*(line for line in lines if line.count), *_minimum(entry, lines, counts)]


def priced_among(
    record: UsageRecord, meters: Container[str], *, document: Mapping[str, Any]
) -> set[str]:
    """Those of some meters without a parent that the prices or formulas of this record name."""
    entry = _entry(record, document["models"])
    formulas: Mapping[str, str] = entry.get("equivalent_tokens", {})
    named = chain(entry["prices"], *(formula_meters(formula) for formula in formulas.values()))
    return {meter for meter in named if meter in meters}


def _entry(record: UsageRecord, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry of the record's model; a line of a batch has the prices of batches."""
    entry = _entry_of_model(record.model_served, entries)
    if record.batch_id is None or "batch" not in entry:
        return entry
    return {name: entry[name] for name in entry if name != "minimum"} | entry["batch"]


def _entry_of_model(model: str, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    exact = (entry for entry in entries if entry["match"] == model)
    # A name without a sign of a pattern fits nothing but itself: large books have thousands.
    patterns = (entry for entry in entries if re.search(r"[*?\[]", entry["match"]))
    fitting = (entry for entry in patterns if fnmatch.fnmatchcase(model, entry["match"]))
    for entry in chain(exact, fitting):
        return entry
    raise EventNotRateable(f"the price version does not cover the model {model!r}")


def _count(meter: str, text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise EventNotRateable(f"{meter} is {text!r}, not a whole number")
    return int(text)


def _bearer(meter: str, names: set[str]) -> str:
    """Of the names in prices and formulas the one that bears this meter: its own, or that of the
    nearest meter that it is a part of."""
    parts = meter.split(".")
    chain = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    bearer = next((name for name in chain if name in names), None)
    if bearer is None or parts[-1] == "equivalent_tokens":
        raise EventNotRateable(f"the price version does not cover the meter {meter!r}")
    return bearer


def _is_prompt_tokens(meter: str) -> bool:
    return meter.startswith(("input.text", "input.audio.tokens", "input.image.tokens"))


def _equivalents(
    formulas: Mapping[str, str], counts: Mapping[str, int], bearers: Mapping[str, str]
) -> dict[str, int]:
    """The equivalent tokens by their meter; a request that used nothing has none."""
    if not any(counts.values()):
        return {}
    borne = {
        bearer: sum(count for meter, count in counts.items() if bearers[meter] == bearer)
        for bearer in bearers.values()
    }
    return {meter: evaluate_formula(formulas[meter], borne) for meter in sorted(formulas)}


def _line(
    meter: str, count: int, price: Mapping[str, Any], *, size: int, admitted_at: str
) -> ChargeLine:
    stated = _stated(price, admitted_at=admitted_at)
    unit = Fraction(_amount(stated, size=size)) * PICOS / price["per"]
    if unit.denominator != 1:
        raise EventNotRateable(f"{meter}: {count} units at {price} do not give whole picos")
    return ChargeLine(meter, count, unit.numerator)


def _stated(price: Mapping[str, Any], *, admitted_at: str) -> Mapping[str, Any]:
    """The first window that is open at the moment of admission, or the price outside of all."""
    if "windows" not in price:
        return price
    try:
        moment = datetime.fromisoformat(admitted_at)
    except ValueError as error:
        raise EventNotRateable(f"{admitted_at!r} is no moment") from error
    if moment.tzinfo is None:
        raise EventNotRateable(f"{admitted_at!r} does not say its time zone")
    return next((w for w in price["windows"] if _is_open(w, moment)), price)


def _is_open(window: Mapping[str, Any], moment: datetime) -> bool:
    """Whether a day's opening, today's or yesterday's, has begun and not yet ended."""
    local = moment.astimezone(load_time_zone(window["time_zone"])).replace(tzinfo=None)
    opens, closes = time.fromisoformat(window["from"]), time.fromisoformat(window["to"])
    for day in (local.date(), local.date() - timedelta(days=1)):
        name = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[day.weekday()]
        if "days" in window and name not in window["days"]:
            continue
        last_day = day if opens < closes else day + timedelta(days=1)
        if datetime.combine(day, opens) <= local < datetime.combine(last_day, closes):
            return True
    return False


def _amount(stated: Mapping[str, Any], *, size: int) -> str:
    """The amount of the highest tier that the request has passed, or the base amount."""
    passed = [tier for tier in stated.get("tiers", ()) if size > tier["above"]]
    if not passed:
        return stated["amount"]
    return max(passed, key=lambda tier: tier["above"])["amount"]


def _minimum(
    entry: Mapping[str, Any], lines: Sequence[ChargeLine], counts: Mapping[str, int]
) -> list[ChargeLine]:
    """The line that lifts a request that used anything to the least that one costs."""
    if "minimum" not in entry or not any(counts.values()):
        return []
    gap = Fraction(entry["minimum"]) * PICOS - sum(line.picos for line in lines)
    return [ChargeLine("minimum", 1, gap.numerator)] if gap > 0 else []
