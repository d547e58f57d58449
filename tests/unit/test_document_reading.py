"""The text of a document, and what is refused before anybody pays for it."""

import io
import random
import zipfile
import zlib

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
from tests.counting.vocabularies import fast

WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'


def docx(xml: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", xml)
    return written.getvalue()


def pdf(*pages: str) -> bytes:
    """A document with a line of text on each page, written by hand."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    box = "/MediaBox [0 0 400 100] /Resources << /Font << /F1 3 0 R >> >>"
    for number, line in enumerate(pages):
        content = f"BT /F1 12 Tf 20 50 Td ({line}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R {box} /Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    written, places = "%PDF-1.4\n", list[int]()
    for number, body in enumerate(objects, start=1):
        places.append(len(written))
        written += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def packed_pdf(content: bytes) -> bytes:
    """A page whose content is compressed."""
    packed = zlib.compress(content, 9)
    head, _, tail = pdf("Hello").partition(b"stream\n")
    text, _, tail = tail.partition(b"endstream")
    old = f"/Length {len(text.rstrip())}".encode()
    assert old in head, "the page has a length"
    new = f"/Filter /FlateDecode /Length {len(packed)}".encode()
    return head.replace(old, new) + b"stream\n" + packed + b"\nendstream" + tail


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
        (packed_pdf(b"\0" * 300_000_000), DocumentUnreadable),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, refusal: type[InvalidRequest]) -> None:
    with pytest.raises(refusal):
        read_document_text(content)


def test_whatever_is_damaged_in_a_document_it_is_read_or_refused() -> None:
    chance = random.Random(7)
    whole = [
        docx(f"{WORD}{'<w:p><w:t>Hello there</w:t></w:p>' * 50}</w:document>".encode()),
        pdf("Hello", "World"),
        packed_pdf(b"BT /F1 12 Tf 10 50 Td (Hello) Tj ET"),
    ]
    refused = 0
    for _ in range(600):
        damaged = _damage(chance.choice(whole), chance)
        try:
            read_document_text(damaged)
        except InvalidRequest:
            refused += 1

    assert 0 < refused < 600


def _damage(whole: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, taken out or put in, or the end cut off; the first ones stay."""
    damaged = bytearray(whole)
    if chance.random() < 0.2:
        return bytes(damaged[: chance.randrange(5, len(damaged))])
    for _ in range(chance.choice([1, 2, 5, 20])):
        place = chance.randrange(5, len(damaged))
        match chance.randrange(3):
            case 0:
                damaged[place] = chance.randrange(256)
            case 1:
                damaged[place : place + chance.randrange(1, 9)] = b" "
            case _:
                damaged[place:place] = chance.choice([b"99", b"<<", b"]", b" R", b"/"])
    return bytes(damaged)


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_parts_fit_and_are_the_text_again(size: int) -> None:
    text = "A sentence of some words. Another one!\n\n" * 40 + "x" * 700

    async def count(block: str) -> int:
        return len(block) // 4

    parts = anyio.run(lambda: cut_text(text, tokens_max=size, count=count))

    assert "".join(part.text for part in parts) == text
    assert all(part.tokens_max <= size for part in parts)


def test_chinese_is_cut_by_the_models_own_tokens_at_the_ends_of_its_sentences(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tokenizer = fast("qwen", tmp_path_factory.mktemp("vocabularies"))
    text = (
        "甲方应当在收到货物后三十日内，向乙方支付全部价款！逾期的，按日支付千分之一的违约金。" * 200
    )

    async def count(block: str) -> int:
        return tokenizer.count(block)

    parts = anyio.run(lambda: cut_text(text, tokens_max=300, count=count))

    assert "".join(part.text for part in parts) == text
    assert all(tokenizer.count(part.text) <= 300 for part in parts)
    assert all(part.text[-1] in "。！，" for part in parts)
    # Not many small ones: most have more than half of what they may have.
    assert len(parts) < 2 * tokenizer.count(text) / 300 + 1


def test_the_text_of_a_pdf_is_read_page_by_page() -> None:
    assert read_document_text(pdf("The buyer pays.", "The seller delivers.")) == (
        "The buyer pays.\n\nThe seller delivers."
    )


def test_a_pdf_that_only_its_owner_may_change_is_read() -> None:
    written, writer = io.BytesIO(), PdfWriter(clone_from=io.BytesIO(pdf("Open to all.")))
    writer.encrypt("", owner_password="secret")
    writer.write(written)

    assert read_document_text(written.getvalue()) == "Open to all."


def test_markdown_is_text() -> None:
    assert read_document_text(b"# Title\n\n- *one*") == "# Title\n\n- *one*"


def test_stages_shrink_to_one_call() -> None:
    assert stage_sizes(1, 6) == [1]
    assert stage_sizes(100, 6) == [100, 17, 3, 1]
