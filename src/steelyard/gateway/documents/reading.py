"""The text of a document: plain text, Markdown, PDF (pypdf) and DOCX (ISO/IEC 29500).

What is unpacked is bounded, whatever a file says of itself.
"""

import io
import zipfile
from collections.abc import Callable
from typing import Final
from xml.etree import ElementTree

from steelyard.errors import Refusal
from steelyard.gateway.refusals import InvalidRequest

TEXT_CHARACTERS_MAX: Final = 20_000_000
UNPACKED_BYTES_MAX: Final = 64 * 1024 * 1024
# Text does not pack tighter than this.
RATIO_MAX: Final = 200
_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_BODY: Final = "word/document.xml"


class DocumentUnreadable(InvalidRequest):
    """The document is damaged, or of a kind that is not read here."""

    code = "document_unreadable"


class DocumentEncrypted(InvalidRequest):
    """The document is protected by a password."""

    code = "document_encrypted"


class DocumentEmpty(InvalidRequest):
    """The document has no text."""

    code = "document_empty"


class DocumentTooLarge(InvalidRequest):
    """The document is larger than is allowed once it is unpacked."""

    code = "document_too_large"


def read_document_text(content: bytes) -> str:
    """The text, whatever the file is called; raises one of the refusals above."""
    if content.startswith(b"%PDF-"):
        text = _read_by(_read_pdf, content, kind="PDF")
    elif content.startswith(b"PK\x03\x04"):
        text = _read_by(_read_docx, content, kind="Word document")
    elif content.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise DocumentEncrypted(
            "the document is protected by a password, or of an old kind of Word's"
        )
    else:
        text = _read_plain(content)
    if len(text) > TEXT_CHARACTERS_MAX:
        raise DocumentTooLarge(f"a document has at most {TEXT_CHARACTERS_MAX} characters")
    if not text.strip():
        raise DocumentEmpty("the document has no text in it")
    return text


def _read_by(read: Callable[[bytes], str], content: bytes, *, kind: str) -> str:
    try:
        return read(content)
    except Refusal:
        raise
    except Exception as error:
        # What a damaged file makes its reader do is in no list: a seek to a negative place, a filter
        # that nobody knows, an attribute that is not there.
        raise DocumentUnreadable(f"the {kind} cannot be read: {str(error)[:200]}") from error


def _read_plain(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentUnreadable("a text is in UTF-8; other files are PDF or DOCX") from error
    if "\0" in text:
        raise DocumentUnreadable("the file is no text, no PDF and no DOCX")
    return text


def _read_pdf(content: bytes) -> str:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(content), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise DocumentEncrypted("the PDF is protected by a password")
    pages: list[str] = []
    size = 0
    for page in reader.pages:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > TEXT_CHARACTERS_MAX:
            raise DocumentTooLarge("the document is too large once it is unpacked")
    return "\n\n".join(pages)


def _read_docx(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        try:
            told = packed.getinfo(_BODY)
        except KeyError as error:
            raise DocumentUnreadable("the archive holds no Word document") from error
        if told.flag_bits & 1:
            raise DocumentEncrypted("the document is protected by a password")
        if told.file_size > max(65_536, told.compress_size * RATIO_MAX):
            raise DocumentTooLarge("the document unpacks to far more than it is")
        with packed.open(told) as body:
            xml = body.read(UNPACKED_BYTES_MAX + 1)
    if len(xml) > UNPACKED_BYTES_MAX:
        raise DocumentTooLarge("the document is too large once it is unpacked")
    # A Word document declares no entities; whoever does wants them to grow.
    if b"<!DOCTYPE" in xml[:65_536] or b"<!ENTITY" in xml:
        raise DocumentUnreadable("the document declares entities")
    root = ElementTree.fromstring(xml)
    return "\n".join(_paragraph(one) for one in root.iter(f"{_WORD}p"))


def _paragraph(paragraph: ElementTree.Element) -> str:
    signs = {f"{_WORD}tab": "\t", f"{_WORD}br": "\n"}
    return "".join(
        (node.text or "") if node.tag == f"{_WORD}t" else signs.get(node.tag, "")
        for node in paragraph.iter()
    )
