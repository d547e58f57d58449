"""What one price book changes of another: models and prices that come, go, or differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.money import write_decimal
from steelyard.pricing.price import Price, Tier
from steelyard.pricing.price_book import ModelPrices, PriceBook


@dataclass(frozen=True, slots=True)
class Change:
    """A price, a formula or a minimum of a model that both books name; None where there is none."""

    model: str
    meter: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class BookDifference:
    """Models by their match, in the order of their names."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    unchanged_count: int

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed)

    def as_document(self) -> dict[str, Any]:
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": [
                {"model": c.model, "meter": c.meter, "old": c.old, "new": c.new}
                for c in self.changed
            ],
            "unchanged": self.unchanged_count,
        }


def compare_books(old: PriceBook | None, new: PriceBook) -> BookDifference:
    """Compare entry by entry; how a price is written, per 1k or per 1M, makes no difference."""
    before = {entry.match: entry for entry in reversed(old.models)} if old else {}
    after = {entry.match: entry for entry in reversed(new.models)}
    both = sorted(before.keys() & after.keys())
    changed = [change for match in both for change in _changes(before[match], after[match])]
    return BookDifference(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(changed),
        unchanged_count=len(both) - len({change.model for change in changed}),
    )


def _changes(old: ModelPrices, new: ModelPrices) -> list[Change]:
    before, after = _terms(old), _terms(new)
    return [
        Change(new.match, name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _terms(entry: ModelPrices) -> Mapping[str, str]:
    """Everything that decides what the model costs, in words that are equal if it is equal."""
    terms = {meter: describe_price(price) for meter, price in entry.meters.items()}
    for meter, formula in entry.equivalent_tokens.items():
        terms[f"{meter} = "] = formula.text
    if entry.minimum is not None:
        terms["minimum"] = write_decimal(entry.minimum)
    return terms


def describe_price(price: Price) -> str:
    """A price in one line, always of a million units."""
    stated = _describe_steps(price.picos, price.tiers, per=price.per)
    windows = [
        f"{window.opens:%H:%M}-{window.closes:%H:%M} {window.time_zone}"
        f"{' ' + ' '.join(window.days) if window.days else ''}: "
        f"{_describe_steps(window.picos, window.tiers, per=price.per)}"
        for window in price.windows
    ]
    return "; ".join([stated, *windows])


def _describe_steps(picos: int, tiers: tuple[Tier, ...], *, per: int) -> str:
    steps = [f"above {tier.above}: {_million(tier.picos, per=per)}" for tier in tiers]
    return ", ".join([f"{_million(picos, per=per)} per 1M", *steps])


def _million(picos: int, *, per: int) -> str:
    return write_decimal(picos // per * 10**6)
