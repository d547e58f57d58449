"""A credit note as people read it, laid out as an invoice is."""

from steelyard.billing.credit_note import CreditNote, canonical_credit_note
from steelyard.billing.invoice import invoice_id
from steelyard.billing.invoice_page import (
    Fact,
    Page,
    PageSection,
    Sum,
    align_amounts,
    group_thousands,
    tell_day,
)
from steelyard.billing.invoice_words import Language, Words
from steelyard.money import read_decimal


def make_credit_note_page(note: CreditNote, *, language: Language) -> Page:
    """Everything that a rendering says of a credit note; its amounts are in the payer's favour."""
    words = Words(language)
    facts = {
        "number": note.number,
        "corrects": note.corrects.number,
        "issued": tell_day(note.issued_at, note.time_zone, words),
        "payer": note.payer,
        "currency": note.currency,
        "reason": note.reason,
    }
    total = f"{group_thousands(note.total, note.currency)} {note.currency}"
    return Page(
        language=language,
        title=words.say("credit_note"),
        number=note.number,
        organisation_label=words.say("billed_to"),
        organisation=note.organisation.name,
        facts=[Fact(words.say(word), value) for word, value in facts.items()],
        figures=[Fact(words.say("credited"), total)],
        summary_heading=words.say("summary"),
        sections=[PageSection(None, _sums(note, words), [])],
        notes=[
            words.say("credited_left", group_thousands(note.left, note.currency), note.currency)
        ],
        document_label=words.say("document"),
        document_id=invoice_id(canonical_credit_note(note)),
        page_label=words.say("page", "{0}", "{1}"),
    )


def _sums(note: CreditNote, words: Words) -> list[Sum]:
    amounts = [
        ("net", note.net),
        ("tax", note.tax),
        ("credited", note.total),
        *(
            (word, amount)
            for word, amount in (("off_debts", note.off_debts), ("to_balance", note.to_balance))
            if read_decimal(amount)
        ),
    ]
    cells = align_amounts([amount for _, amount in amounts], note.currency)
    return [
        Sum(words.say(word, note.tax_percent), cell, word == "credited")
        for (word, _), cell in zip(amounts, cells, strict=True)
    ]
