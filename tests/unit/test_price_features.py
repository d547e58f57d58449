"""Windows, formulas, minimum, plans and books made from books: read, refused, compiled."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steelyard.pricing.adjustment import read_adjustment
from steelyard.pricing.formula import FormulaMalformed, read_formula
from steelyard.pricing.price import Price
from steelyard.pricing.price_book import (
    AppliesTo,
    PriceVersion,
    canonical_bytes,
    canonical_document,
    publishable_version,
)
from steelyard.pricing.price_book_yaml import (
    PriceBaseCyclic,
    PriceBaseNotFound,
    PriceBookMalformed,
    read_price_book,
)
from steelyard.time_zone import load_time_zone

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "reference" / "price-book.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
HEAD = """schema: steelyard.price-book/v1
name: {name}
currency: USD
effective_from: 2026-11-01T00:00:00Z
"""
ENTRY = """models:
  - match: m
    prices:
      input.text: { amount: 3, per: 1M }
      output.text: { amount: 0.000000000007, per: 1 }
"""


def _published(text: str) -> PriceVersion:
    return publishable_version(read_price_book(text))


def test_every_example_of_the_documents_is_good() -> None:
    published: list[PriceVersion] = []

    for example in EXAMPLES:
        published.append(publishable_version(read_price_book(example, published=published)))

    assert len(published) >= 7


def test_what_a_book_does_not_use_is_not_in_its_bytes() -> None:
    demo = (REPOSITORY / "price_books" / "demo.yaml").read_text()

    version = _published(demo)

    assert version.sha256 == "195320802b0510e86b97d2cf6181525f38201c39dc1540f9d46898fea75fea3a"


@pytest.mark.parametrize(
    ("moment", "amount"),
    [
        ("2026-03-28T16:29:59.999999+00:00", 2),
        ("2026-03-28T16:30:00+00:00", 1),
        ("2026-03-29T00:29:59.999999+00:00", 1),
        ("2026-03-29T00:30:00+00:00", 2),
    ],
)
def test_a_window_over_midnight_opens_on_time_and_closes_on_time(moment: str, amount: int) -> None:
    price = _price('{ amount: 2, per: 1, windows: [{ from: "16:30", to: "00:30", amount: 1 }] }')

    at = price.at(datetime.fromisoformat(moment))

    assert at.picos == amount * 10**12


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-03-29T00:59:59+00:00", False),
        ("2026-03-29T01:00:00+00:00", True),
        ("2026-10-25T00:00:00+00:00", True),
        ("2026-10-25T00:59:59+00:00", True),
        ("2026-10-25T01:00:00+00:00", True),
        ("2026-10-25T02:00:00+00:00", False),
    ],
)
def test_a_window_goes_by_the_clock_on_the_wall(moment: str, is_open: bool) -> None:
    window = '{ from: "02:00", to: "03:00", time_zone: Europe/Berlin, amount: 1 }'
    if moment.startswith("2026-03"):
        window = '{ from: "02:00", to: "04:00", time_zone: Europe/Berlin, amount: 1 }'
    price = _price(f"{{ amount: 2, per: 1, windows: [{window}] }}")

    at = price.at(datetime.fromisoformat(moment))

    assert at.picos == (1 if is_open else 2) * 10**12


def test_a_friday_night_window_is_open_on_saturday_morning() -> None:
    window = '{ from: "22:00", to: "02:00", days: [fri], amount: 1 }'
    price = _price(f"{{ amount: 2, per: 1, windows: [{window}] }}")
    moments = [datetime(2026, 11, day, hour, tzinfo=UTC) for day in (20, 21) for hour in (1, 23)]

    amounts = [price.at(moment).picos // 10**12 for moment in moments]

    assert amounts == [2, 1, 1, 2]


def test_a_window_has_tiers_of_its_own_or_none() -> None:
    price = _price(
        "{ amount: 2, per: 1, tiers: [{above: 5, amount: 4}],"
        ' windows: [{ from: "01:00", to: "02:00", amount: 1 }] }'
    )

    inside = price.at(datetime(2026, 11, 20, 1, tzinfo=UTC))
    outside = price.at(datetime(2026, 11, 20, 2, tzinfo=UTC))

    assert inside.picos_per_unit(size=6) == 10**12
    assert outside.picos_per_unit(size=6) == 4 * 10**12


def test_time_zones_come_from_the_package() -> None:
    assert load_time_zone("Asia/Shanghai").key == "Asia/Shanghai"
    for wrong in ("Mars/Base", "../../etc/passwd", "/etc/localtime", "Asia", "", "Europe/Berlin/x"):
        with pytest.raises(ValueError, match="time zone"):
            load_time_zone(wrong)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("input.text", 10),
        ("input.text + 2 * output.text", 16),
        ("(input.text - output.text) * 2", 14),
        ("output.text - input.text", 0),
        ("ceil(input.text / 3)", 4),
        ("floor(input.text / 3)", 3),
        ("round_half_even(input.text / 4)", 2),
        ("round_half_even(output.text * 0.5)", 2),
        ("max(input.text, output.text, 99)", 99),
        ("min(input.text, output.text)", 3),
        ("ceil(0.1 * 3 * input.text)", 3),
        ("- -input.text", 10),
        ("search + 1", 1),
    ],
)
def test_a_formula_is_computed_exactly(text: str, result: int) -> None:
    formula = read_formula(text)

    assert formula.evaluate({"input.text": 10, "output.text": 3}) == result


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "too early"),
        ("input.text +", "too early"),
        ("input.text output.text", "could end"),
        ("(input.text", "too early"),
        ("input.txt", "neither a meter"),
        ("__import__('os')", "not understood"),
        ("input.text.__class__", "not understood"),
        ("9 ** 9", "neither"),
        ("9 // 9", "neither"),
        ("1e9", "not understood"),
        ("007", "not understood"),
        ("1.", "not understood"),
        ("input.text / 2", "wrap it in ceil"),
        ("0.5 * input.text", "wrap it in ceil"),
        ("ceil(1 / input.text)", "divide by constants"),
        ("ceil(1 / (2 - 2))", "division by zero"),
        ("max(input.text)", "at least two"),
        ("ceil(1, 2)", "takes one value"),
        ("abs(input.text)", "neither"),
        ("max", "neither"),
        ("input.text if 1 else 2", "could end"),
        ("(" * 40 + "1" + ")" * 40, "deep"),
        ("-" * 40 + "1", "deep"),
        ("1+" * 300 + "1", "at most 500"),
        ("output.image.equivalent_tokens", "neither a meter"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(FormulaMalformed, match=complaint):
        read_formula(text)


def test_a_formula_as_long_as_it_may_be_is_computed_fast() -> None:
    text = "*".join(["input.text"] * 45)

    assert read_formula(text).evaluate({"input.text": 10**18}) == 10 ** (18 * 45)


@pytest.mark.parametrize(
    ("percent", "picos"),
    [
        ("0", 7),
        ("-50", 4),
        ("50", 10),
        ("-100", 0),
        ("-12.5", 6),
        ("100000", None),
        ("-100.000001", None),
        ("1e2", None),
        ("5%", None),
        ("0.0000001", None),
    ],
)
def test_a_markup_is_rounded_once_half_to_even(percent: str, picos: int | None) -> None:
    base = _published(HEAD.format(name="base") + ENTRY)
    text = HEAD.format(name="new") + f'extends: base\nadjust: {{ percent: "{percent}" }}\n'

    if picos is None:
        with pytest.raises(PriceBookMalformed, match="line 6"):
            read_price_book(text, published=[base])
        return
    book = read_price_book(text, published=[base])

    assert book.models[0].meters["output.text"].picos == picos


def test_a_compiled_book_keeps_hash_and_percent_and_explicit_amounts() -> None:
    base = _published(HEAD.format(name="base") + ENTRY)
    text = (
        HEAD.format(name="new")
        + "applies_to: { organisation: acme }\n"
        + f"extends: {base.sha256}\nadjust: {{ percent: 10.0 }}\n"
        + "models:\n  - match: m\n    adjust: { percent: -20 }\n"
        + "  - match: n\n    prices: { input.text: { amount: 1, per: 1M } }\n"
    )

    book = read_price_book(text, published=[base])

    document = canonical_document(book)
    assert book.applies_to == AppliesTo("organisation", "acme")
    assert document["base"] == {"name": "base", "sha256": base.sha256, "percent": "10"}
    assert [entry["match"] for entry in document["models"]] == ["m", "n"]
    assert document["models"][0]["adjusted_percent"] == "-20"
    assert document["models"][0]["prices"]["input.text"] == {"amount": "2.4", "per": 1_000_000}
    assert document["models"][1]["prices"]["input.text"] == {"amount": "1", "per": 1_000_000}


def test_what_is_inherited_and_not_named_is_adjusted_by_the_books_percentage() -> None:
    base = _published(HEAD.format(name="base") + ENTRY)
    text = HEAD.format(name="new") + "extends: base\nadjust: { percent: 10 }\n"

    book = read_price_book(text, published=[base])

    assert book.models[0].meters["input.text"].picos == 3_300_000_000_000
    assert canonical_bytes(book) == canonical_bytes(read_price_book(text, published=[base]))


def test_a_book_cannot_extend_itself_or_what_is_not_published() -> None:
    with pytest.raises(PriceBaseCyclic, match="line 5"):
        read_price_book(HEAD.format(name="new") + "extends: new\n")
    with pytest.raises(PriceBaseNotFound, match="line 5"):
        read_price_book(HEAD.format(name="new") + "extends: old\n")


def test_a_book_in_another_currency_cannot_be_extended() -> None:
    base = _published(HEAD.format(name="base").replace("USD", "EUR") + ENTRY)

    with pytest.raises(PriceBookMalformed, match=r"line 5.*EUR"):
        read_price_book(HEAD.format(name="new") + "extends: base\n", published=[base])


FORMULA_ENTRY = """models:
  - match: m
    equivalent_tokens: { output.image.equivalent_tokens: "output.image.steps" }
    prices: { output.image.equivalent_tokens: { amount: 1, per: 1 } }
"""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ENTRY + "adjust: { percent: 5 }\n", "line 10.*extends"),
        (ENTRY + "applies_to: {}\n", "line 10.*one plan or one"),
        (ENTRY + "applies_to: { plan: a, organisation: b }\n", "line 10.*one plan or one"),
        (ENTRY + "applies_to: { plan: Gold }\n", "line 10"),
        (ENTRY.replace("prices:", "minimum: 0\n    prices:"), "line 7.*more than zero"),
        (ENTRY.replace("prices:", "minimum: -1\n    prices:"), "line 7.*not negative"),
        ("models:\n  - match: m\n", "line 6.*'prices' is missing"),
        ("models: []\n", "line 5.*at least one"),
        ("", "'models' is missing"),
        (FORMULA_ENTRY.replace("image.steps", "image.stairs"), "line 7.*neither a meter"),
        (FORMULA_ENTRY.replace("steps", "steps / 2"), "line 7.*wrap"),
        (
            FORMULA_ENTRY.replace('{ output.image.equivalent_tokens: "', '{ tokens: "'),
            "line 7.*ends with",
        ),
        (
            FORMULA_ENTRY.replace("prices: { output.image.eq", "prices: { output.text.eq"),
            "unknown meter",
        ),
        (
            FORMULA_ENTRY.replace("prices: { output.image.equivalent_tokens", "prices: { call"),
            "line 7.*no price",
        ),
        (
            FORMULA_ENTRY.replace('{ output.image.equivalent_tokens: "output.image.steps" }', "{}"),
            "line 7.*at least one formula",
        ),
        *(
            (
                ENTRY.replace("amount: 3, per: 1M", f"amount: 3, per: 1M, windows: [{window}]"),
                complaint,
            )
            for window, complaint in [
                ("{ from: '24:00', to: '01:00', amount: 1 }", "line 8.*time of day"),
                ("{ from: '1:00', to: '01:00', amount: 1 }", "line 8.*time of day"),
                ("{ from: '00:00', amount: 1 }", "line 8.*'to' is missing"),
                ("{ from: '00:00', to: '01:00', amount: -1 }", "line 8.*not negative"),
                ("{ from: '00:00', to: '01:00', amount: 0.0000001 }", "line 8.*finer"),
                (
                    "{ from: '00:00', to: '01:00', amount: 1, time_zone: Mars/Base }",
                    "line 8.*no time zone",
                ),
                ("{ from: '00:00', to: '01:00', amount: 1, days: [friday] }", "line 8.*not a day"),
                ("{ from: '00:00', to: '01:00', amount: 1, days: [] }", "line 8.*at least one day"),
                ("{ from: '00:00', to: '01:00', amount: 1, per: 1 }", "line 8.*unknown key"),
            ]
        ),
    ],
)
def test_a_malformed_feature_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(PriceBookMalformed, match=f"(?s){complaint}"):
        read_price_book(HEAD.format(name="new") + text)


def test_a_percentage_is_written_the_shortest_way() -> None:
    assert [read_adjustment(t).percent for t in ("-12.50", "0.0", "-0.5", "20")] == [
        "-12.5",
        "0",
        "-0.5",
        "20",
    ]


def _price(text: str) -> Price:
    book = read_price_book(
        HEAD.format(name="new") + f"models:\n  - match: m\n    prices: {{ input.text: {text} }}\n"
    )
    return book.models[0].meters["input.text"]
