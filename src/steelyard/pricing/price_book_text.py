"""Writes a price book as YAML that people review and `read_price_book` reads back."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from steelyard.pricing.price_book import PriceBook, canonical_document

PER_NAMES: Final = {1_000: "1k", 1_000_000: "1M"}


def write_price_book(book: PriceBook) -> str:
    """One line for each price. A compiled book becomes a plain one: its amounts are explicit."""
    document = canonical_document(book)
    lines = [f"{key}: {_text(document[key])}" for key in ("schema", "name", "currency")]
    lines.append(f"effective_from: {document['effective_from']}")
    if "applies_to" in document:
        lines.append(f"applies_to: {_flow(document['applies_to'])}")
    lines.append("models:")
    for entry in document["models"]:
        lines += _entry_lines(entry)
    return "\n".join(lines) + "\n"


def _entry_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    yield f"  - match: {_text(entry['match'])}"
    for key in ("source", "minimum"):
        if key in entry:
            yield f"    {key}: {_text(entry[key])}"
    if "equivalent_tokens" in entry:
        yield f"    equivalent_tokens: {_flow(entry['equivalent_tokens'])}"
    yield "    prices:"
    for meter, price in entry["prices"].items():
        yield f"      {meter}: {_flow({**price, 'per': PER_NAMES.get(price['per'], price['per'])})}"
    if "batch" in entry:
        # The prices of a batch follow from those above.
        yield f"    batch: {{ percent: {_text(entry['batch']['adjusted_percent'])} }}"


def _flow(value: Mapping[str, Any] | Sequence[Any] | str | int) -> str:
    if isinstance(value, Mapping):
        parts = ", ".join(f"{key}: {_flow(each)}" for key, each in value.items())
        return f"{{ {parts} }}"
    if isinstance(value, str | int):
        return _text(value)
    return f"[{', '.join(_flow(each) for each in value)}]"


def _text(value: str | int) -> str:
    """A plain word where YAML takes it for the same word, else a JSON string, which YAML reads."""
    text = str(value)
    is_plain = text.replace("-", "").replace(".", "").replace("/", "").isalnum() and text.isascii()
    return text if is_plain and text[0] not in "-./" else json.dumps(text, ensure_ascii=False)
