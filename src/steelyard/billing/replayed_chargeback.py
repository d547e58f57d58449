"""What a posted chargeback moved between payers, made again from the departments of its document.

It shares no code with the chargeback: it multiplies and adds, where that one splits.
"""

from collections import defaultdict
from typing import Final

import msgspec

from steelyard.billing.chargeback_report import Chargeback
from steelyard.errors import SteelyardError
from steelyard.money import read_decimal

_READER: Final = msgspec.json.Decoder(Chargeback)


def balances_of(canonical: str, *, invoice: str) -> dict[str, tuple[int, str]] | None:
    """Picos and currency by payer; None where the document is not a chargeback that adds up."""
    try:
        document = _READER.decode(canonical)
        return _balances(document) if document.invoice == invoice else None
    except (msgspec.DecodeError, SteelyardError, KeyError):
        return None


def _balances(document: Chargeback) -> dict[str, tuple[int, str]] | None:
    lines = {line.department: line for line in document.departments}
    given = {name: read_decimal(line.passed_on) for name, line in lines.items()}
    net: dict[str, int] = defaultdict(int)
    borne: dict[str, int] = defaultdict(int)
    shared: dict[str, int] = defaultdict(int)
    split_off: dict[str, int] = defaultdict(int)
    is_fair = True
    for line in document.departments:
        for part in line.splits:
            picos = read_decimal(part.amount)
            borne[line.department or ""] += picos
            split_off[part.paid_by] += picos
            net[line.payer] -= picos
            net[lines[part.paid_by].payer] += picos
        for share in line.shares:
            picos, whole = read_decimal(share.amount), share.of_weights
            borne[line.department or ""] += picos
            shared[share.shared] += picos
            net[line.payer] -= picos
            net[lines[share.shared].payer] += picos
            is_fair &= abs(picos * whole - given[share.shared] * share.weight) < whole
    adds_up = all(
        read_decimal(line.total)
        == read_decimal(line.own)
        + borne[line.department or ""]
        - split_off[line.department or ""]
        - given[line.department]
        and read_decimal(line.split_off) == split_off[line.department or ""]
        and given[line.department] == shared[line.department or ""]
        for line in document.departments
    )
    total = sum(read_decimal(line.total) for line in document.departments)
    said = {b.payer: read_decimal(b.amount) for b in document.balances}
    moved = {payer: picos for payer, picos in net.items() if picos}
    if not (is_fair and adds_up and total == read_decimal(document.total) and moved == said):
        return None
    return {b.payer_id: (said[b.payer], document.currency) for b in document.balances}
