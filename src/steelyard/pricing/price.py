"""A price: what a unit of one meter costs, by the length of the prompt and the time of day."""

from dataclasses import dataclass, replace
from datetime import datetime, time
from typing import Any, Final, Literal

from steelyard.money import write_decimal
from steelyard.time_zone import load_time_zone

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Tier:
    """The amount that applies, to every unit, once the request is larger than `above`: its prompt in
    tokens, or where the meter counts items, its items."""

    above: int
    picos: int


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day with prices of its own: an amount, and tiers if it states any.

    It opens at a local time on each of its days and closes at the next time of its closing, which
    may be on the day after. Where clocks are put back, the hour that comes twice counts twice.
    """

    opens: time
    closes: time
    time_zone: str
    days: tuple[Day, ...]
    picos: int
    tiers: tuple[Tier, ...] = ()

    def is_open(self, moment: datetime) -> bool:
        local = moment.astimezone(load_time_zone(self.time_zone))
        clock, weekday = local.time(), local.weekday()
        if self.opens < self.closes:
            return self.opens <= clock < self.closes and self._opens_on(weekday)
        if clock >= self.opens:
            return self._opens_on(weekday)
        return clock < self.closes and self._opens_on(weekday - 1)

    def _opens_on(self, weekday: int) -> bool:
        return not self.days or DAYS[weekday % len(DAYS)] in self.days

    def as_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "from": self.opens.strftime("%H:%M"),
            "to": self.closes.strftime("%H:%M"),
            "time_zone": self.time_zone,
            "amount": write_decimal(self.picos),
        }
        if self.days:
            document["days"] = list(self.days)
        return document | _tiers_document(self.tiers)


@dataclass(frozen=True, slots=True)
class Price:
    """What one unit of a meter costs: `picos` for every `per` units. Divides without remainder.

    Tiers are cliffs: the size of the request decides on one of the amounts for all units, so the
    price of a request depends on nothing but the request.
    """

    picos: int
    per: int
    tiers: tuple[Tier, ...] = ()
    windows: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        assert self.per > 0, f"a price is per a positive number of units: {self.per}"
        for picos in self.all_picos():
            assert picos >= 0, f"a price is not negative: {picos}"
            assert picos % self.per == 0, f"{picos} picos per {self.per} is finer than a pico"
        for tiers in (self.tiers, *(window.tiers for window in self.windows)):
            bounds = [tier.above for tier in tiers]
            assert bounds == sorted(set(bounds)), f"tiers are in order of their bounds: {bounds}"
            assert min(bounds, default=1) > 0, f"a tier starts above a positive number: {bounds}"

    def all_picos(self) -> list[int]:
        return [
            amount.picos for stated in (self, *self.windows) for amount in (stated, *stated.tiers)
        ]

    def at(self, moment: datetime) -> "Price":
        """The price without its windows: that of the first window that is open, or its own."""
        if not self.windows:
            return self
        for window in self.windows:
            if window.is_open(moment):
                return Price(window.picos, self.per, window.tiers)
        return replace(self, windows=())

    def picos_per_unit(self, *, size: int) -> int:
        """The price of a unit in a request of this size: its prompt in tokens, or its items."""
        assert not self.windows, "the moment decides first: use at()"
        picos = self.picos
        for tier in self.tiers:
            if size > tier.above:
                picos = tier.picos
        return picos // self.per

    def highest_picos_per_unit(self, *, size_max: int) -> int:
        """The most that a unit can cost in a request of up to this size."""
        assert not self.windows, "the moment decides first: use at()"
        reachable = [tier.picos for tier in self.tiers if size_max > tier.above]
        return max([self.picos, *reachable]) // self.per

    def as_document(self) -> dict[str, Any]:
        """The price as plain JSON values; amounts are decimal strings."""
        document: dict[str, Any] = {"amount": write_decimal(self.picos), "per": self.per}
        if self.windows:
            document["windows"] = [window.as_document() for window in self.windows]
        return document | _tiers_document(self.tiers)


def _tiers_document(tiers: tuple[Tier, ...]) -> dict[str, Any]:
    if not tiers:
        return {}
    return {"tiers": [{"above": tier.above, "amount": write_decimal(tier.picos)} for tier in tiers]}
