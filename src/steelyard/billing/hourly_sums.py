"""What the settled events of an hour add up to: per path and meter, and per grant that paid."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

# '2026-11-24T12', the beginning of a timestamp.
HOUR_CHARACTERS: Final = 13

# Meter, count and picos per unit.
Line = tuple[str, int, int]
# Meters and picos per unit, which the lines of many events have in common.
Sheet = tuple[tuple[str, int], ...]


class UsageSums(msgspec.Struct, array_like=True):
    """Sums of usage by hour; paths are numbers of the batch.

    `usage` is [count, picos] by path, billed hour, used hour, meter and unit price; `requests` counts
    events by path and billed hour.
    """

    usage: dict[tuple[int, str, str, str, int], list[int]] = msgspec.field(default_factory=dict)
    requests: dict[tuple[int, str], int] = msgspec.field(default_factory=dict)

    def add(
        self,
        path: int,
        sheet: Sheet,
        counts: Iterable[int],
        *,
        hour: str,
        billed_hour: str | None = None,
        requests: int = 1,
    ) -> None:
        """Add what so many requests used in an hour; it is billed then, if nothing else is said."""
        billed = hour if billed_hour is None else billed_hour
        self.requests[path, billed] = self.requests.get((path, billed), 0) + requests
        for (meter, picos_per_unit), count in zip(sheet, counts, strict=True):
            sums = self.usage.setdefault((path, billed, hour, meter, picos_per_unit), [0, 0])
            sums[0] += count
            sums[1] += count * picos_per_unit


def sum_usage(events: Iterable[tuple[tuple[int, str, Sheet], Sequence[int]]]) -> UsageSums:
    """Add up settled events that are billed when they ended: path, hour and sheet, and the counts.

    Events that are alike are added up a column at a time.
    """
    groups: dict[tuple[int, str, Sheet], list[Sequence[int]]] = defaultdict(list)
    for key, counts in events:
        groups[key].append(counts)
    sums = UsageSums()
    for (path, hour, sheet), rows in groups.items():
        totals = map(sum, zip(*rows, strict=True))
        sums.add(path, sheet, totals, hour=hour, requests=len(rows))
    return sums


class ChargeWriter:
    """Writes the charge lines of events that share their sheets as `write_charges` writes them."""

    def __init__(self) -> None:
        self._forms: dict[Sheet, str] = {}

    def write(self, sheet: Sheet, counts: tuple[int, ...]) -> str:
        form = self._forms.get(sheet)
        if form is None:
            lines = [f'["{meter}",%d,{picos}]' for meter, picos in sheet]
            form = self._forms[sheet] = f"[{','.join(lines)}]"
        return form % counts


def write_charges(lines: Sequence[Line]) -> str:
    """The charge lines of an event as compact JSON; names of meters need no escaping."""
    written = [f'["{meter}",{count},{picos}]' for meter, count, picos in lines]
    return f"[{','.join(written)}]"


def read_charges(text: str) -> list[Line]:
    """The lines that `write_charges` wrote."""
    return [(meter, count, picos) for meter, count, picos in json.loads(text)]
