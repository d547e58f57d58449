"""The worker's rating of many events at once, from the published documents of the price books.

It shares no code with the gateway's rating, and with `event_rating`, which `verify` uses, only the
reading of formulas. Read `BatchRating.rate` first: events that are priced alike are rated as whole
columns, so that a unit price is looked up once for all of them.
"""

import fnmatch
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import reduce
from itertools import compress, repeat
from operator import add, itemgetter, mul
from typing import Any, NamedTuple, Protocol, TypeVar

from steelyard.billing.formula_evaluation import evaluate_formula, formula_meters
from steelyard.billing.hourly_sums import Line, Sheet
from steelyard.time_zone import load_time_zone

PICO_DIGITS = 12
COUNT_DIGITS_MAX = 30
MINUTES_OF_DAY = 24 * 60
MINUTES_OF_WEEK = 7 * MINUTES_OF_DAY
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DERIVED_SUFFIX = ".equivalent_tokens"
NO_WINDOW = -1
ITEM = "item"
ONE, BATCH = "one", "batch"

Document = Mapping[str, Any]
_Key = TypeVar("_Key", bound=int | tuple[int, ...])


class RateableEvent(Protocol):
    """What rating reads of an event; counts are decimal strings, the moment is RFC 3339 in UTC."""

    @property
    def price_version(self) -> str: ...
    @property
    def model_served(self) -> str: ...
    @property
    def currency(self) -> str: ...
    @property
    def admitted_at(self) -> str: ...
    @property
    def meters(self) -> Mapping[str, str]: ...
    @property
    def batch_id(self) -> str | None: ...


class Rated(NamedTuple):
    """What an event costs, or why it cannot be said.

    `sheet` has the meter and the picos per unit of each charge line, and is one and the same for
    many events; `counts` has a count for each of them.
    """

    sheet: Sheet
    counts: tuple[int, ...]
    picos: int
    complaint: str | None

    @property
    def lines(self) -> list[Line]:
        """Meter, count and picos per unit."""
        rows = zip(self.sheet, self.counts, strict=True)
        return [(meter, count, picos_per_unit) for (meter, picos_per_unit), count in rows]


def _complained(complaint: str) -> Rated:
    return Rated((), (), 0, complaint)


class _NotRateable(Exception):
    """Says why the events of a group cannot be priced."""


class _Steps(NamedTuple):
    """A unit price by the size of the request: `units[i]` up to `bounds[i]`, then the last."""

    bounds: Sequence[int]
    units: Sequence[int]

    def at(self, size: int) -> int:
        return self.units[bisect_left(self.bounds, size)]


class _Block(NamedTuple):
    """Events with the same meters: their places in the batch, and a column of counts per meter."""

    places: Sequence[int]
    columns: Sequence[Sequence[int]]

    def split(self, keys: Sequence[_Key]) -> "Iterator[tuple[_Key, _Block]]":
        """A block for each different key, with the events that have it."""
        kinds = dict.fromkeys(keys)
        for kind in kinds:
            if len(kinds) == 1:
                yield kind, self
                return
            chosen = [key == kind for key in keys]
            columns = [list(compress(column, chosen)) for column in self.columns]
            yield kind, _Block(list(compress(self.places, chosen)), columns)

    def sum(self, columns: Iterable[Sequence[int]]) -> Sequence[int]:
        """One number for each event: what these columns add up to."""
        zeros: Sequence[int] = [0] * len(self.places)
        return reduce(lambda left, right: list(map(add, left, right)), columns, zeros)


class BatchRating:
    """Rates batches by the price versions that it is given; remembers which entry fits a model."""

    def __init__(self, documents: Mapping[str, Document]) -> None:
        self._documents = documents
        self._entries: dict[tuple[str, str, str], Document] = {}

    def rate(self, events: Sequence[RateableEvent]) -> list[Rated]:
        """Price every event, in the order given; of one that cannot be priced it says why."""
        rated = [_complained("the event was left out of its batch")] * len(events)
        for (version, model, currency, kind, *meters), places in _group(events).items():
            try:
                prices = _Prices(self._entry(version, model, currency, kind=kind), meters)
            except _NotRateable as complaint:
                for place in places:
                    rated[place] = _complained(str(complaint))
                continue
            whole = _read_block(prices, events, places, rated)
            for block, units in prices.by_unit_price(whole, events):
                for place, row in zip(block.places, prices.rate(block, units), strict=True):
                    rated[place] = row
        return rated

    def _entry(self, version: str, model: str, currency: str, *, kind: str) -> Document:
        document = self._documents.get(version)
        if document is None:
            raise _NotRateable(f"no price version {version} was published")
        if document["currency"] != currency:
            raise _NotRateable(f"priced in {document['currency']}, booked in {currency}")
        entry = self._entries.get((version, model, kind))
        if entry is None:
            found = _find_entry(document["models"], model)
            entry = self._entries[version, model, kind] = _of_kind(found, kind)
        return entry


class _Prices:
    """The prices of one model, laid out for events that have the same meters."""

    def __init__(self, entry: Document, meters: Sequence[str]) -> None:
        self._prices: Mapping[str, Document] = entry["prices"]
        self._formulas: Mapping[str, str] = entry.get("equivalent_tokens", {})
        self._minimum = _read_picos(entry["minimum"]) if "minimum" in entry else 0
        self._meters = meters
        named = {name for formula in self._formulas.values() for name in formula_meters(formula)}
        self._homes = [_nearest(meter, self._prices.keys() | named) for meter in meters]
        self._prompt_places = [i for i, m in enumerate(meters) if _counts_prompt_tokens(m)]
        self._item_places = [i for i, meter in enumerate(meters) if meter == ITEM]
        priced = self._prices.keys() & set(self._homes)
        self._needed = sorted(priced | self._formulas.keys())
        self.has_windows = any("windows" in self._prices[name] for name in self._needed)

    def by_unit_price(
        self, block: _Block, events: Sequence[RateableEvent]
    ) -> Iterator[tuple[_Block, Mapping[str, int]]]:
        """Events that have the same unit prices, with these prices by their meters."""
        if not block.places:
            return
        for windows, part in self._by_window(block, events):
            steps = {
                name: _read_steps(self._prices[name], window)
                for name, window in zip(self._needed, windows, strict=True)
            }
            by_prompt = [step for name, step in steps.items() if name != ITEM]
            by_items = [step for name, step in steps.items() if name == ITEM]
            for prompt, piece in _by_size(part, by_prompt, self._prompt_places):
                for items, alike in _by_size(piece, by_items, self._item_places):
                    yield (
                        alike,
                        {
                            name: step.at(items if name == ITEM else prompt)
                            for name, step in steps.items()
                        },
                    )

    def _by_window(
        self, block: _Block, events: Sequence[RateableEvent]
    ) -> Iterator[tuple[tuple[int, ...], _Block]]:
        """Events that were admitted in the same windows of the prices that are needed."""
        if not self.has_windows:
            yield (NO_WINDOW,) * len(self._needed), block
            return
        seconds = [_second(events[place].admitted_at) for place in block.places]
        windows = {second: self._open_windows(second) for second in set(seconds)}
        yield from block.split([windows[second] for second in seconds])

    def _open_windows(self, second: str) -> tuple[int, ...]:
        moment = datetime.fromisoformat(second)
        return tuple(_open_window(self._prices[name], moment) for name in self._needed)

    def rate(self, block: _Block, units: Mapping[str, int]) -> Iterator[Rated]:
        """Price events that have the same unit prices, a whole column at a time."""
        counted = [
            (meter, column, units[home])
            for meter, home, column in zip(self._meters, self._homes, block.columns, strict=True)
            if home in units
        ]
        counted.sort(key=itemgetter(0))
        for meter, formula in sorted(self._formulas.items()):
            counted.append((meter, self._equivalents(formula, block), units[meter]))
        totals = block.sum(list(map(mul, column, repeat(unit))) for _, column, unit in counted)
        sheet = tuple((meter, unit) for meter, _, unit in counted)
        columns = [column for _, column, _ in counted]
        rows = zip(*columns, strict=True) if columns else repeat((), len(totals))
        if self._minimum or any(0 in column for column in columns):
            gaps = self._gaps(block, totals)
            totals = list(map(add, totals, gaps))
            return map(_rated_without_zeros, repeat(sheet), rows, gaps, totals)
        return map(Rated, repeat(sheet), rows, totals, repeat(None))

    def _equivalents(self, formula: str, block: _Block) -> Sequence[int]:
        """What the formula gives for each event; nothing for an event that used nothing."""
        values: dict[str, Sequence[int]] = {}
        for home, column in zip(self._homes, block.columns, strict=True):
            values[home] = block.sum([values[home], column]) if home in values else column
        rows = zip(*values.values(), strict=True) if values else repeat((), len(block.places))
        return [
            evaluate_formula(formula, dict(zip(values, row, strict=True))) if any(row) else 0
            for row in rows
        ]

    def _gaps(self, block: _Block, totals: Sequence[int]) -> Sequence[int]:
        """How much each event that used anything falls short of the minimum."""
        if not self._minimum:
            return [0] * len(totals)
        used = block.sum(block.columns)
        return [
            max(0, self._minimum - total) if count else 0
            for count, total in zip(used, totals, strict=True)
        ]


def _by_size(
    block: _Block, steps: Iterable[_Steps], places: Sequence[int]
) -> Iterator[tuple[int, _Block]]:
    """Events that are beyond the same tiers, with a size that stands for theirs; a size is the sum
    of the columns at these places."""
    bounds = sorted({bound for step in steps for bound in step.bounds})
    if not bounds:
        yield 0, block
        return
    sizes = block.sum(block.columns[i] for i in places)
    for reach, part in block.split([bisect_left(bounds, size) for size in sizes]):
        yield bounds[reach] if reach < len(bounds) else bounds[-1] + 1, part


def _rated_without_zeros(sheet: Sheet, counts: Sequence[int], gap: int, picos: int) -> Rated:
    """Only lines that count something, and one for what is missing to the minimum."""
    lines = [(entry, count) for entry, count in zip(sheet, counts, strict=True) if count]
    if gap:
        lines.append((("minimum", gap), 1))
    return Rated(tuple(e for e, _ in lines), tuple(n for _, n in lines), picos, None)


def _group(events: Sequence[RateableEvent]) -> dict[tuple[str, ...], list[int]]:
    """The places of events by version, model, currency, whether in a batch, and meters."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        kind = ONE if event.batch_id is None else BATCH
        key = event.price_version, event.model_served, event.currency, kind, *event.meters
        groups[key].append(place)
    return groups


def _of_kind(entry: Document, kind: str) -> Document:
    """The entry, with the prices of batches where it states some and they are asked for."""
    if kind == ONE or BATCH not in entry:
        return entry
    batch: Document = entry[BATCH]
    least = {"minimum": batch["minimum"]} if "minimum" in batch else {}
    formulas = entry.get("equivalent_tokens", {})
    return {"prices": batch["prices"], "equivalent_tokens": formulas, **least}


def _read_block(
    prices: _Prices, events: Sequence[RateableEvent], places: Sequence[int], rated: list[Rated]
) -> _Block:
    """The counts of the events without a fault of their own; the others get their complaint."""
    columns = _columns(events, places)
    if prices.has_windows or not all(map(_are_whole, columns)):
        places = [place for place in places if not _complain(prices, events[place], place, rated)]
        columns = _columns(events, places)
    return _Block(places, [list(map(int, column)) for column in columns])


def _columns(events: Sequence[RateableEvent], places: Sequence[int]) -> list[tuple[str, ...]]:
    return list(zip(*[events[place].meters.values() for place in places], strict=True))


def _complain(prices: _Prices, event: RateableEvent, place: int, rated: list[Rated]) -> bool:
    complaint = None
    if not _are_whole(list(event.meters.values())):
        complaint = f"counts are not whole numbers: {dict(event.meters)}"
    elif prices.has_windows and not _is_moment(event.admitted_at):
        complaint = f"{event.admitted_at!r} is no moment with its offset"
    if complaint is not None:
        rated[place] = _complained(complaint)
    return complaint is not None


def _are_whole(texts: Sequence[str]) -> bool:
    digits = "".join(texts)
    is_decimal = digits.isascii() and digits.isdigit() and all(texts)
    return not texts or (is_decimal and max(map(len, texts)) <= COUNT_DIGITS_MAX)


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _second(moment: str) -> str:
    """The moment without its fraction, where it is written as we write it: windows open and close
    on whole minutes, so all moments of a second share their windows."""
    return f"{moment[:19]}Z" if len(moment) == 27 and moment.endswith("Z") else moment


def _find_entry(entries: Sequence[Document], model: str) -> Document:
    for entry in entries:
        if entry["match"] == model:
            return entry
    for entry in entries:
        is_pattern = any(sign in entry["match"] for sign in "*?[")
        if is_pattern and fnmatch.fnmatchcase(model, entry["match"]):
            return entry
    raise _NotRateable(f"the price version does not cover the model {model!r}")


def _nearest(meter: str, names: Iterable[str]) -> str:
    """Of these names the longest that is the meter's own or that of what it is a part of."""
    homes = [name for name in names if meter == name or meter.startswith(f"{name}.")]
    if not homes or meter.endswith(DERIVED_SUFFIX):
        raise _NotRateable(f"the price version does not cover the meter {meter!r}")
    return max(homes, key=len)


def _counts_prompt_tokens(meter: str) -> bool:
    family, _, kind = meter.partition(".")
    return family == "input" and (kind.split(".")[0] == "text" or "tokens" in kind.split("."))


def _read_steps(price: Document, window: int) -> _Steps:
    stated = price if window == NO_WINDOW else price["windows"][window]
    tiers = stated.get("tiers", ())
    amounts = [stated["amount"], *(tier["amount"] for tier in tiers)]
    return _Steps(
        [tier["above"] for tier in tiers],
        [_read_picos(amount) // price["per"] for amount in amounts],
    )


def _open_window(price: Document, moment: datetime) -> int:
    """The first of the price's windows that the moment is in, on the clock of the window's zone."""
    for number, window in enumerate(price.get("windows", ())):
        local = moment.astimezone(load_time_zone(window["time_zone"]))
        minute = local.weekday() * MINUTES_OF_DAY + local.hour * 60 + local.minute
        start, end = _minute_of_day(window["from"]), _minute_of_day(window["to"])
        length = (end - start) % MINUTES_OF_DAY or MINUTES_OF_DAY
        for day in window.get("days", DAYS):
            opening = DAYS.index(day) * MINUTES_OF_DAY + start
            if (minute - opening) % MINUTES_OF_WEEK < length:
                return number
    return NO_WINDOW


def _minute_of_day(text: str) -> int:
    hour, minute = text.split(":")
    return int(hour) * 60 + int(minute)


def _read_picos(amount: str) -> int:
    whole, _, decimals = amount.partition(".")
    return int(whole + decimals.ljust(PICO_DIGITS, "0"))
