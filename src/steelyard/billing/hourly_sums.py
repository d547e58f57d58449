"""What the settled events of an hour add up to: per path and meter, and per grant that paid."""

import json
from collections.abc import Sequence
from typing import Final

import msgspec

# '2026-11-24T12', the beginning of a timestamp.
HOUR_CHARACTERS: Final = 13

# Meter, count and picos per unit.
Line = tuple[str, int, int]


class UsageSums(msgspec.Struct, array_like=True):
    """Sums of usage by hour; paths are numbers of the batch.

    `usage` is [count, picos] by path, billed hour, used hour, meter and unit price; `requests` counts
    events by path and billed hour.
    """

    usage: dict[tuple[int, str, str, str, int], list[int]] = msgspec.field(default_factory=dict)
    requests: dict[tuple[int, str], int] = msgspec.field(default_factory=dict)

    def add(
        self, path: int, lines: Sequence[Line], *, ended_at: str, billed_at: str | None = None
    ) -> None:
        """Add one settled event; it is billed when it ended, if nothing else is said."""
        used_hour = ended_at[:HOUR_CHARACTERS]
        billed_hour = used_hour if billed_at is None else billed_at[:HOUR_CHARACTERS]
        requests, usage = self.requests, self.usage
        request_key = path, billed_hour
        requests[request_key] = requests.get(request_key, 0) + 1
        for meter, count, picos_per_unit in lines:
            key = path, billed_hour, used_hour, meter, picos_per_unit
            sums = usage.get(key)
            if sums is None:
                usage[key] = [count, count * picos_per_unit]
            else:
                sums[0] += count
                sums[1] += count * picos_per_unit


def write_charges(lines: Sequence[Line]) -> str:
    """The charge lines of an event as compact JSON; names of meters need no escaping."""
    written = [f'["{meter}",{count},{picos}]' for meter, count, picos in lines]
    return f"[{','.join(written)}]"


def read_charges(text: str) -> list[Line]:
    """The lines that `write_charges` wrote."""
    return [(meter, count, picos) for meter, count, picos in json.loads(text)]
