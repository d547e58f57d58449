"""Which departments are shared, and who bears them by what weight."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from steelyard.access.tenant import Department
from steelyard.billing.chargeback import order_shared
from steelyard.billing.chargeback_books import ChargebackBooks
from steelyard.errors import Refusal

WEIGHT_MAX: Final = 1_000_000_000
_WEIGHT: Final = re.compile(r"([^=]+)=([0-9]{1,10})", re.ASCII)


class WeightMalformed(Refusal):
    """A weight is a department and a whole number from 1 to 1,000,000,000, as research=3."""

    code = "weight_malformed"


class WeightsMissing(Refusal):
    """A shared department is borne by at least one other. '--none' ends sharing it."""

    code = "weights_missing"


class ChargebackToItself(Refusal):
    """A department does not bear a share of itself."""

    code = "chargeback_to_itself"


def read_weights(texts: Iterable[str]) -> dict[str, int]:
    """Names of departments with their weights; raises WeightMalformed or WeightsMissing."""
    weights: dict[str, int] = {}
    for text in texts:
        match = _WEIGHT.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= WEIGHT_MAX:
            raise WeightMalformed(f"{text!r} is no weight: {WeightMalformed.__doc__}")
        if match[1] in weights:
            raise WeightMalformed(f"{match[1]} has two weights; say one")
        weights[match[1]] = int(match[2])
    if not weights:
        raise WeightsMissing
    return weights


def set_weights(
    books: ChargebackBooks, shared: Department, weights: Sequence[tuple[Department, int]]
) -> None:
    """Split a shared department among these from now on, and among no others; none end it.

    Raises ChargebackToItself or ChargebackCyclic, with nothing changed.
    """
    organisation_id = shared.organisation.id
    assert all(d.organisation.id == organisation_id for d, _ in weights), "of one organisation"
    assert all(1 <= weight <= WEIGHT_MAX for _, weight in weights), f"weights: {weights}"
    if any(department.id == shared.id for department, _ in weights):
        raise ChargebackToItself(f"{shared.path} does not bear a share of itself")
    with books.write() as unit:
        unit.wait_turn(f"chargeback/{organisation_id}")
        kept = {**unit.weights_of(organisation_id)}
        kept.pop(shared.name, None)
        if weights:
            kept[shared.name] = {department.name: weight for department, weight in weights}
        order_shared(kept)
        unit.replace_weights(shared.id, {department.id: weight for department, weight in weights})
