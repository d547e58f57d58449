"""The JSON Schema for editors says what the loader says, as far as a schema can."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from steelyard.metering.usage import METERS
from tests.unit.test_price_features import ENTRY, EXAMPLES, FORMULA_ENTRY, HEAD

REPOSITORY = Path(__file__).parents[2]
SCHEMA = json.loads(
    resources.files("steelyard.pricing").joinpath("price_book.schema.json").read_text()
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BOOK = HEAD.format(name="good") + ENTRY
SHIPPED = sorted(REPOSITORY.glob("price_books/*.yaml"))


class _PlainLoader(yaml.SafeLoader):
    """Dates stay text, as editors see them."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_PlainLoader)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "text",
    [BOOK, HEAD.format(name="f") + FORMULA_ENTRY, *EXAMPLES, *(p.read_text() for p in SHIPPED)],
)
def test_every_good_book_is_valid(text: str) -> None:
    VALIDATOR.validate(_read(text))


def test_the_schema_knows_every_meter() -> None:
    names = SCHEMA["$defs"]["entry"]["properties"]["prices"]["propertyNames"]["anyOf"][1]["enum"]

    assert names == list(METERS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: good\n", ""),
        ("name: good", "name: Good Book"),
        ("currency: USD", "currency: usd"),
        ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00"),
        ("2026-11-01T00:00:00Z", "tomorrow"),
        ("amount: 3", "amount: -3"),
        ("amount: 3", 'amount: "3e3"'),
        ("amount: 3, per: 1M", "amount: 3, per: 0"),
        ("amount: 3, per: 1M", "amount: 3, per: 1.5"),
        ("amount: 3, per: 1M", "amount: 3"),
        ("amount: 3, per: 1M", "amount: 3, per: 1M, tiers: [{ above: 0, amount: 3 }]"),
        ("amount: 3, per: 1M", "amount: 3, per: 1M, tiers: [{ above: 9 }]"),
        (
            "amount: 3, per: 1M",
            "amount: 3, per: 1M, windows: [{ from: '24:00', to: '01:00', amount: 1 }]",
        ),
        ("amount: 3, per: 1M", "amount: 3, per: 1M, windows: [{ from: '00:00', amount: 1 }]"),
        ("input.text:", "input.txt:"),
        ("prices:", "sauce: an example\n    prices:"),
        ("prices:", "minimum: 0\n    prices:"),
        ("prices:", "equivalent_tokens: {}\n    prices:"),
        ("prices:", "equivalent_tokens: { tokens: call }\n    prices:"),
        ("prices:", "adjust: { percent: -101 }\n    prices:"),
        ("prices:", "adjust: {}\n    prices:"),
        ("    prices:", "    source:"),
        ("price-book/v1", "price-book/v9"),
        ("models:", "adjust: { percent: 5 }\nmodels:"),
        ("models:", "applies_to: {}\nmodels:"),
        ("models:", "applies_to: { plan: a, organisation: b }\nmodels:"),
    ],
)
def test_what_the_loader_refuses_by_its_shape_the_schema_refuses_too(old: str, new: str) -> None:
    assert old in BOOK
    text = BOOK.replace(old, new, 1)

    assert not VALIDATOR.is_valid(_read(text))
