"""Reads one price from YAML: its amount, its tiers and its windows."""

import re
from datetime import time
from typing import get_args

from steelyard.money import AmountMalformed, read_decimal
from steelyard.pricing.price import DAYS, Day, Price, Tier, Window
from steelyard.pricing.yaml_place import Place
from steelyard.time_zone import load_time_zone

PER_NAMES = {"1": 1, "1k": 1_000, "1M": 1_000_000}


def read_price(place: Place) -> Price:
    fields = place.fields(required={"amount", "per"}, optional={"tiers", "windows"})
    per = _read_per(fields["per"])
    return Price(
        read_amount(fields["amount"], per=per),
        per,
        _read_tiers(fields["tiers"], per=per) if "tiers" in fields else (),
        _read_windows(fields["windows"], per=per) if "windows" in fields else (),
    )


def read_amount(place: Place, *, per: int) -> int:
    try:
        picos = read_decimal(place.text())
    except AmountMalformed as error:
        raise place.malformed(str(error)) from error
    if picos < 0:
        raise place.malformed("a price is not negative")
    if picos % per:
        raise place.malformed("the price of one unit is finer than 10^-12; round it")
    return picos


def _read_per(place: Place) -> int:
    per = PER_NAMES.get(place.text()) or place.whole()
    if per <= 0:
        raise place.malformed("expected 1, 1k, 1M or a positive whole number of units")
    return per


def _read_tiers(place: Place, *, per: int) -> tuple[Tier, ...]:
    tiers: list[Tier] = []
    for item in place.items():
        fields = item.fields(required={"above", "amount"}, optional=set())
        above = fields["above"].whole()
        if above <= 0:
            raise fields["above"].malformed("expected a positive whole number of tokens")
        if tiers and above <= tiers[-1].above:
            raise fields["above"].malformed("tiers stand in the order of their bounds")
        tiers.append(Tier(above, read_amount(fields["amount"], per=per)))
    return tuple(tiers)


def _read_windows(place: Place, *, per: int) -> tuple[Window, ...]:
    windows: list[Window] = []
    for item in place.items():
        fields = item.fields(
            required={"from", "to", "amount"}, optional={"time_zone", "days", "tiers"}
        )
        windows.append(
            Window(
                opens=_read_time(fields["from"]),
                closes=_read_time(fields["to"]),
                time_zone=_read_time_zone(fields["time_zone"]) if "time_zone" in fields else "UTC",
                days=_read_days(fields["days"]) if "days" in fields else (),
                picos=read_amount(fields["amount"], per=per),
                tiers=_read_tiers(fields["tiers"], per=per) if "tiers" in fields else (),
            )
        )
    return tuple(windows)


def _read_time(place: Place) -> time:
    text = place.text()
    if not re.fullmatch("(?:[01][0-9]|2[0-3]):[0-5][0-9]", text, re.ASCII):
        raise place.malformed(f"{text!r} is not a time of day; write it as 16:30")
    return time.fromisoformat(text)


def _read_time_zone(place: Place) -> str:
    try:
        return load_time_zone(place.text()).key
    except ValueError as error:
        raise place.malformed(str(error)) from error


def _read_days(place: Place) -> tuple[Day, ...]:
    days = {item.text(): item for item in place.items()}
    for text, item in days.items():
        if text not in get_args(Day):
            raise item.malformed(f"{text!r} is not a day; the days are {', '.join(DAYS)}")
    if not days:
        raise place.malformed("name at least one day, or leave the key out for all of them")
    return tuple(day for day in DAYS if day in days)
