"""A chargeback as a document: what each department cost in a period, and whom it is charged to.

What was posted keeps its document, so that weights can change afterwards.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import rfc8785

from steelyard.billing.chargeback import (
    DepartmentCost,
    Splits,
    Weights,
    net_between_payers,
    share_costs,
)
from steelyard.billing.statement import Period
from steelyard.money import Currency, write_decimal
from steelyard.timestamp import write_timestamp

SCHEMA: Final = "steelyard.chargeback/v1"
CSV_COLUMNS: Final[Sequence[str]] = (
    "organisation",
    "from",
    "until",
    "department",
    "payer",
    "line",
    "shared",
    "weight",
    "of_weights",
    "amount",
    "currency",
)


class ShareLine(msgspec.Struct, frozen=True):
    """What a department bears of a shared one: `weight` parts of `of_weights`."""

    shared: str
    weight: int
    of_weights: int
    amount: str


class SplitLine(msgspec.Struct, frozen=True):
    """What a department bears of events that another one has paid for."""

    paid_by: str
    amount: str


class DepartmentLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a department cost; `department` is null for what is about the whole organisation."""

    department: str | None
    payer: str
    own: str
    shares: Sequence[ShareLine]
    passed_on: str
    total: str
    splits: Sequence[SplitLine] = ()
    split_off: str = "0"


class BalanceLine(msgspec.Struct, frozen=True):
    """What posting moves to (positive) or from the balance of a payer."""

    payer: str
    payer_id: str
    amount: str


class Chargeback(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """The whole document; `invoice` is the number of the period's invoice, once it is closed."""

    schema: Literal["steelyard.chargeback/v1"]
    organisation: str
    currency: str
    start: str
    until: str
    invoice: str | None
    departments: Sequence[DepartmentLine]
    balances: Sequence[BalanceLine]
    total: str


@dataclass(frozen=True, slots=True)
class DepartmentPlace:
    """A department by name, and the id of its payer."""

    name: str
    payer_id: str


@dataclass(frozen=True, slots=True)
class ChargebackFacts:
    """What a chargeback is made from. `payers` are names by id, the organisation first; `own` is
    what each department cost, `unassigned` what is about the whole organisation."""

    organisation: str
    currency: Currency
    period: Period
    invoice: str | None
    payers: Mapping[str, str]
    departments: Sequence[DepartmentPlace]
    own: Mapping[str, int]
    unassigned: int
    weights: Weights
    splits: Splits = field(default_factory=dict[tuple[str, str], int])


def make_chargeback(facts: ChargebackFacts) -> Chargeback:
    """The document of these facts."""
    payer_of = {department.name: department.payer_id for department in facts.departments}
    costs = share_costs(
        {name: facts.own.get(name, 0) for name in payer_of}, facts.weights, facts.splits
    )
    lines = [
        _department_line(name, cost, payer=facts.payers[payer_of[name]], weights=facts.weights)
        for name, cost in costs.items()
    ]
    if facts.unassigned:
        amount = write_decimal(facts.unassigned)
        lines.append(DepartmentLine(None, facts.organisation, amount, (), "0", amount))
    total = sum(cost.total for cost in costs.values()) + facts.unassigned
    return Chargeback(
        schema=SCHEMA,
        organisation=facts.organisation,
        currency=facts.currency,
        start=write_timestamp(facts.period.start),
        until=write_timestamp(facts.period.end),
        invoice=facts.invoice,
        departments=lines,
        balances=[
            BalanceLine(facts.payers[payer_id], payer_id, write_decimal(picos))
            for payer_id, picos in net_between_payers(costs, payer_of).items()
        ],
        total=write_decimal(total),
    )


def canonical_chargeback(chargeback: Chargeback) -> str:
    """The document as RFC 8785 writes it: the same bytes for the same content."""
    return rfc8785.dumps(chargeback_document(chargeback)).decode()


def chargeback_document(chargeback: Chargeback) -> dict[str, Any]:
    return msgspec.to_builtins(chargeback)


def read_chargeback(canonical: str) -> Chargeback:
    return msgspec.json.decode(canonical, type=Chargeback)


def write_chargeback_csv(chargeback: Chargeback) -> str:
    """A row for each own cost, split, share and part passed on; they add up to the total."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, CSV_COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(chargeback_rows(chargeback))
    return text.getvalue()


def chargeback_rows(chargeback: Chargeback) -> Iterator[dict[str, str]]:
    for line in chargeback.departments:
        common = {
            "organisation": chargeback.organisation,
            "from": chargeback.start,
            "until": chargeback.until,
            "department": line.department or "",
            "payer": line.payer,
            "currency": chargeback.currency,
        }
        yield {**common, "line": "own", "amount": line.own}
        for part in line.splits:
            yield {**common, "line": "split", "shared": part.paid_by, "amount": part.amount}
        if line.split_off != "0":
            yield {**common, "line": "split_off", "amount": negated(line.split_off)}
        for share in line.shares:
            weights = {"weight": str(share.weight), "of_weights": str(share.of_weights)}
            named = {"line": "share", "shared": share.shared, "amount": share.amount}
            yield {**common, **named, **weights}
        if line.passed_on != "0":
            yield {**common, "line": "passed_on", "amount": negated(line.passed_on)}


def _department_line(
    name: str, cost: DepartmentCost, *, payer: str, weights: Weights
) -> DepartmentLine:
    shares = [
        ShareLine(
            shared, weights[shared][name], sum(weights[shared].values()), write_decimal(picos)
        )
        for shared, picos in sorted(cost.shares.items())
    ]
    return DepartmentLine(
        department=name,
        payer=payer,
        own=write_decimal(cost.own),
        shares=shares,
        passed_on=write_decimal(cost.passed_on),
        total=write_decimal(cost.total),
        splits=[SplitLine(paid_by, write_decimal(p)) for paid_by, p in sorted(cost.splits.items())],
        split_off=write_decimal(cost.split_off),
    )


def negated(amount: str) -> str:
    """The decimal with the other sign."""
    return amount[1:] if amount.startswith("-") else f"-{amount}"
