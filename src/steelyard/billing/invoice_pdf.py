"""An invoice as PDF, set by Typst in Noto Sans CJK: the same bytes whenever it is written.

Neither the machine's fonts nor its clock have a part in it. The file is PDF/A-3, for archives, and
carries the canonical document as an attachment.
"""

from datetime import datetime
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from steelyard.billing.invoice_page import Page
from steelyard.errors import Failure

ARCHIVE = "a-3a"


class PdfUnavailable(Failure):
    """PDF needs Typst and a font: pip install 'steelyard[invoices]'."""

    code = "pdf_unavailable"


class PdfUnwritable(Failure):
    """The PDF could not be set."""

    code = "pdf_unwritable"


def write_invoice_pdf(page: Page, *, canonical: str, issued_at: datetime) -> bytes:
    """The whole file; raises PdfUnavailable where what it needs is not installed."""
    typst, fonts = _load()
    date = {"year": issued_at.year, "month": issued_at.month, "day": issued_at.day}
    inputs = {
        "page": msgspec.json.encode(page).decode(),
        "canonical": canonical,
        "file": f"{page.number}.json",
        "issued": msgspec.json.encode(date).decode(),
    }
    try:
        return typst.compile(
            resources.files("steelyard.billing").joinpath("invoice.typ").read_bytes(),
            font_paths=[str(fonts)],
            ignore_system_fonts=True,
            sys_inputs=inputs,
            pdf_standards=[ARCHIVE],
            timestamp=issued_at.replace(microsecond=0),
        )
    except RuntimeError as error:
        raise PdfUnwritable(f"{page.number} could not be set: {error}") from error


def _load() -> tuple[Any, Path]:
    """Typst, and the folder of the font."""
    try:
        typst: ModuleType = import_module("typst")
        font: ModuleType = import_module("manimgx_fonts_cjk")
    except ModuleNotFoundError as error:
        raise PdfUnavailable from error
    assert font.__file__ is not None, "the font is a package with files"
    return typst, Path(font.__file__).parent
