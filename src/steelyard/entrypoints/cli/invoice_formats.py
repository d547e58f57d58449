"""The formats in which an invoice or a credit note is handed over."""

from typing import Literal

from steelyard.billing.credit_note import read_credit_note
from steelyard.billing.credit_note_page import make_credit_note_page
from steelyard.billing.invoice import read_invoice
from steelyard.billing.invoice_books import IssuedInvoice
from steelyard.billing.invoice_csv import credit_note_rows, invoice_rows, write_invoice_csv
from steelyard.billing.invoice_html import write_invoice_html
from steelyard.billing.invoice_page import Page, make_page
from steelyard.billing.invoice_pdf import write_invoice_pdf
from steelyard.billing.invoice_words import Language

Format = Literal["json", "csv", "html", "pdf"]


def render(issued: IssuedInvoice, file_format: Format, *, language: Language) -> bytes:
    """The document itself, or a rendering that is made from it alone."""
    if file_format == "json":
        return issued.canonical.encode()
    if file_format == "csv":
        return _csv(issued).encode()
    page = _page(issued, language)
    if file_format == "html":
        return write_invoice_html(page).encode()
    return write_invoice_pdf(page, canonical=issued.canonical, issued_at=issued.issued_at)


def _csv(issued: IssuedInvoice) -> str:
    if issued.kind == "credit_note":
        return write_invoice_csv(credit_note_rows(read_credit_note(issued.canonical)))
    return write_invoice_csv(invoice_rows(read_invoice(issued.canonical)))


def _page(issued: IssuedInvoice, language: Language) -> Page:
    if issued.kind == "credit_note":
        return make_credit_note_page(read_credit_note(issued.canonical), language=language)
    return make_page(read_invoice(issued.canonical), language=language)
