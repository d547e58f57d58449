"""The text of a document, and what is refused before anybody pays for it."""

import io
import zipfile

import anyio
import pytest
from pypdf import PdfWriter

from steelyard.gateway.documents.cutting import cut_text
from steelyard.gateway.documents.reading import (
    DocumentEmpty,
    DocumentEncrypted,
    DocumentTooLarge,
    DocumentUnreadable,
    read_document_text,
)
from steelyard.gateway.documents.runner import stage_sizes
from steelyard.gateway.refusals import InvalidRequest

WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'


def docx(xml: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", xml)
    return written.getvalue()


def locked_pdf() -> bytes:
    written, writer = io.BytesIO(), PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    writer.write(written)
    return written.getvalue()


def test_the_paragraphs_of_a_word_document_are_read() -> None:
    body = "<w:p><w:r><w:t>One</w:t><w:tab/><w:t>two</w:t></w:r></w:p><w:p><w:t>three</w:t></w:p>"

    assert read_document_text(docx(f"{WORD}{body}</w:document>".encode())) == "One\ttwo\nthree"


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"   \n", DocumentEmpty),
        (b"\x00\x01\x02", DocumentUnreadable),
        (b"\xff\xfe no UTF-8", DocumentUnreadable),
        (b"PK\x03\x04 damaged", DocumentUnreadable),
        (b"%PDF-1.7 damaged", DocumentUnreadable),
        (docx(b"<a>" + b" " * 100_000_000), DocumentTooLarge),
        (docx(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), DocumentUnreadable),
        (docx(b"<a>"), DocumentUnreadable),
        (locked_pdf(), DocumentEncrypted),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, refusal: type[InvalidRequest]) -> None:
    with pytest.raises(refusal):
        read_document_text(content)


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_parts_fit_and_are_the_text_again(size: int) -> None:
    text = "A sentence of some words. Another one!\n\n" * 40 + "x" * 700

    async def count(block: str) -> int:
        return len(block) // 4

    parts = anyio.run(lambda: cut_text(text, tokens_max=size, count=count))

    assert "".join(part.text for part in parts) == text
    assert all(part.tokens_max <= size for part in parts)


def test_stages_shrink_to_one_call() -> None:
    assert stage_sizes(1, 6) == [1]
    assert stage_sizes(100, 6) == [100, 17, 3, 1]
