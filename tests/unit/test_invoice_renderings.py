"""What HTML and PDF say of an invoice is what its document says, in both languages, and the same
bytes every time."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from html import unescape

import pytest
from pypdf import PdfReader

from steelyard.access.tenant import Organisation
from steelyard.billing.billing_period import read_month
from steelyard.billing.invoice import (
    AdjustmentRow,
    Invoice,
    InvoiceFacts,
    UsageRow,
    bill_payers,
    canonical_invoice,
    invoice_id,
    make_invoice,
)
from steelyard.billing.invoice_csv import invoice_rows
from steelyard.billing.invoice_html import write_invoice_html
from steelyard.billing.invoice_page import Page, make_page
from steelyard.billing.invoice_pdf import write_invoice_pdf
from steelyard.billing.invoice_words import Language, Words
from steelyard.billing.statement import Period
from steelyard.ledger.hold import INVOICED, Draw
from steelyard.metering.usage import METERS
from steelyard.money import Currency, read_decimal

ZONE = "Asia/Shanghai"
ISSUED = datetime(2026, 11, 2, 9, 0, 0, 123_456, tzinfo=UTC)
OCTOBER = read_month("2026-10", time_zone=ZONE)
HOSTILE = "<script>alert(1)</script> #let $x$ *y* \\ [z] 退款"
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_equal_documents_give_equal_bytes(language: Language) -> None:
    invoice = _invoice()

    page = make_page(invoice, language=language)

    assert write_invoice_html(page) == write_invoice_html(make_page(invoice, language=language))
    assert _pdf(page, invoice) == _pdf(make_page(invoice, language=language), invoice)


@pytest.mark.parametrize("language", LANGUAGES)
def test_html_and_pdf_say_every_amount_and_name_of_the_document(language: Language) -> None:
    invoice = _invoice()
    page = make_page(invoice, language=language)

    html = unescape(write_invoice_html(page))
    pdf = _text(_pdf(page, invoice))

    for told in _texts(page):
        assert told in html
        assert _bare(told) in pdf, told


def test_the_sums_of_a_page_are_those_of_csv_and_document() -> None:
    invoice = _invoice()

    page = make_page(invoice, language="en")

    told = [_read(group.amount.text) for group in page.sections[0].tables[0].groups if group.amount]
    total = next(one for one in page.sections[0].sums if one.label == "Total")
    assert sum(told) == read_decimal(invoice.sections[0].usage)
    assert _read(total.amount.text) == sum(
        read_decimal(row["amount"]) for row in invoice_rows(invoice)
    )


def test_the_pdf_carries_the_document_whose_hash_it_names() -> None:
    invoice = _invoice()

    reader = PdfReader(io.BytesIO(_pdf(make_page(invoice, language="zh"), invoice)))

    [attached] = reader.attachments["acme-0001.json"]
    assert attached.decode() == canonical_invoice(invoice)
    assert invoice_id(attached.decode()) in _bare("".join(p.extract_text() for p in reader.pages))
    assert reader.metadata is not None
    assert reader.metadata.creation_date == datetime(2026, 11, 2, tzinfo=UTC)


def test_names_and_reasons_are_text_and_nothing_else() -> None:
    invoice = _invoice()
    page = make_page(invoice, language="en")

    html, pdf = write_invoice_html(page), _text(_pdf(page, invoice))

    assert "<script" not in html
    assert HOSTILE in unescape(html)
    assert _bare(HOSTILE) in pdf


@pytest.mark.parametrize(
    ("currency", "picos", "told"),
    [
        ("JPY", 1_234 * 10**12, "1,234 JPY"),
        ("KWD", 1_234 * 10**12, "1,234.000 KWD"),
        ("USD", 1_234_567_500_000_000_000, "1,234,567.50 USD"),
    ],
)
def test_a_total_has_the_decimals_of_its_currency(currency: str, picos: int, told: str) -> None:
    invoice = _invoice(currency=currency, usage=[_row(picos=picos)], adjustments=[], tax_ppm=0)

    page = make_page(invoice, language="en")

    assert page.figures[0].value == told


@pytest.mark.parametrize(
    ("period", "told"),
    [
        (read_month("2028-02", time_zone=ZONE), "1 February 2028 to 29 February 2028"),
        (read_month("2026-12", time_zone=ZONE), "1 December 2026 to 31 December 2026"),
        (
            Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 2, 1, tzinfo=UTC)),
            "2026-10-01 08:00:00+08:00 to 2026-10-02 09:00:00+08:00",
        ),
    ],
)
def test_a_period_is_told_by_the_clocks_of_the_organisation(period: Period, told: str) -> None:
    page = make_page(_invoice(period=period), language="en")

    assert {fact.label: fact.value for fact in page.facts}["Period"] == told


def test_an_invoice_of_nothing_says_so() -> None:
    invoice = _invoice(usage=[], adjustments=[])

    page = make_page(invoice, language="en")

    assert page.notes[0] == "Nothing was used in this period."
    assert page.figures[0].value == "0.00 EUR"
    assert _pdf(page, invoice).startswith(b"%PDF")


@pytest.mark.slow
def test_many_pages_are_numbered_and_lose_no_line() -> None:
    rows = [_row(key=f"key-{number:04}") for number in range(800)]
    invoice = _invoice(usage=rows)

    reader = PdfReader(io.BytesIO(_pdf(make_page(invoice, language="en"), invoice)))

    text = _bare("".join(page.extract_text() for page in reader.pages))
    assert f"Page{len(reader.pages)}of{len(reader.pages)}" in text
    assert all(f"key-{number:04}" in text for number in range(800))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_meter_has_a_name_in_both_languages(language: Language) -> None:
    words = Words(language)

    names = [words.meter(meter) for meter in METERS]

    assert len(set(names)) == len(METERS)
    assert not set(names) & METERS.keys()
    assert words.meter("provider.own") == "provider.own"


def _row(
    *,
    key: str = "张伟",
    meter: str = "input.text",
    picos: int = 185_185_183_500_000,
    late: str = "",
) -> UsageRow:
    return UsageRow(
        payer_id="o",
        department="销售部",
        project="vision",
        key=key,
        model="meta-llama/Llama-4-Maverick",
        meter=meter,
        picos_per_unit=150_000,
        count=picos // 150_000,
        picos=picos,
        used_in=late or None,
    )


USAGE = (_row(), _row(meter="output.text", picos=7_654_300_000), _row(late="acme-0000"))
REFUND = AdjustmentRow(
    payer_id="o",
    id="refund-1",
    kind="refund",
    department="销售部",
    reference="019a20be-6f1b-774b-814c-cac873a757d4",
    reason=HOSTILE,
    booked_at=ISSUED,
    picos=3 * 10**12,
    by_source={"paid": 3 * 10**12},
)


def _invoice(
    *,
    currency: str = "EUR",
    usage: Sequence[UsageRow] = USAGE,
    adjustments: Sequence[AdjustmentRow] = (REFUND,),
    period: Period = OCTOBER,
    tax_ppm: int = 190_000,
) -> Invoice:
    organisation = Organisation(
        "o", "acme", Currency(currency), OCTOBER.start, tax_ppm=tax_ppm, time_zone=ZONE
    )
    facts = InvoiceFacts(
        organisation=organisation,
        number="acme-0001",
        period=period,
        issued_at=ISSUED,
        requests=18_734,
        payers={"o": "acme"},
        usage=usage,
        paid_by={("o", "paid"): sum(row.picos for row in usage)},
        adjustments=adjustments,
        brought_forward={"o": 1_234_567 if usage else 0},
        price_versions=["v1"],
    )
    bills = bill_payers(facts)
    collected = abs(bills["o"].collected)
    draws = {"o": [Draw(INVOICED, collected)]} if collected else {}
    return make_invoice(facts, bills, draws=draws, period_name=None)


def _pdf(page: Page, invoice: Invoice) -> bytes:
    return write_invoice_pdf(page, canonical=canonical_invoice(invoice), issued_at=ISSUED)


def _texts(page: Page) -> list[str]:
    told = [page.title, page.number, page.organisation, page.document_id, *page.notes]
    told += [text for fact in (*page.facts, *page.figures) for text in (fact.label, fact.value)]
    for section in page.sections:
        told += [text for one in section.sums for text in (one.label, one.amount.text)]
        for table in section.tables:
            told += [table.heading, *(column.label for column in table.columns)]
            for group in table.groups:
                told += [group.heading] if group.heading else []
                told += [cell.text for row in group.rows for cell in row]
    return told


def _text(pdf: bytes) -> str:
    return _bare("".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages))


def _bare(text: str) -> str:
    """Without the spaces and breaks that setting a page adds or takes."""
    return "".join(text.replace("\u200b", "").split())


def _read(told: str) -> int:
    return read_decimal(told.replace(",", "").replace("−", "-"))
