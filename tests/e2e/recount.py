"""Counts and prices the demo again, with nothing of ours: the tokenizer, jinja2 and decimal.

Usage: python recount.py TRANSCRIPT MODEL_FOLDER PRICE_BOOK BOOKS_DB
Exit status 0 says that every count, every cost and the ledger's deduction agree.
"""

import json
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

MODEL = "smollm2-135m-instruct"
END = "<|im_end|>"
PICOS = 10**12


def main(transcript: Path, model_folder: Path, price_book: Path, books: Path) -> list[str]:
    """Every disagreement that was found."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        (model_folder / "chat_template.jinja").read_text()
    )
    prices = _read_prices(price_book)
    complaints: list[str] = []
    deducted = Decimal(0)
    for exchange in json.loads(transcript.read_text()):
        if exchange["refused"]:
            continue
        counts = _count(exchange, tokenizer, template, complaints)
        cost = sum((prices[meter] * count for meter, count in counts.items()), Decimal(0))
        if cost != Decimal(exchange["usage"]["cost"]):
            complaints.append(f"{exchange['question']}: {cost}, billed {exchange['usage']['cost']}")
        deducted += cost
    ledger = _read_deduction(books)
    if deducted != ledger:
        complaints.append(f"recounted {deducted}, the ledger deducted {ledger}")
    print(f"recounted {deducted} USD, the ledger deducted {ledger} USD")
    return complaints


def _read_prices(path: Path) -> dict[str, Decimal]:
    # BaseLoader leaves every number as the text that it is.
    book = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    entry = next(entry for entry in book["models"] if entry["match"] == MODEL)
    per = {"1": 1, "1k": 1000, "1M": 1000000}
    return {
        meter: Decimal(price["amount"]) / per[price["per"]]
        for meter, price in entry["prices"].items()
    }


def _count(
    exchange: dict[str, Any], tokenizer: Tokenizer, template: Any, complaints: list[str]
) -> dict[str, int]:
    """Tokens of the prompt as the template renders it, and of the answer as it was received."""
    messages = [{"role": "user", "content": exchange["question"]}]
    prompt = template.render(messages=messages, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    if prompt_ids != exchange["prompt_token_ids"]:
        complaints.append(f"{exchange['question']}: another prompt was fed to the model")
    ids: list[int] = exchange["token_ids"]
    ended = bool(ids) and ids[-1] == tokenizer.token_to_id(END)
    said = ids[:-1] if ended else ids
    # The ids prove the text: what they decode to is what the client received.
    if tokenizer.decode(said).strip() != exchange["answer"].strip():
        complaints.append(f"{exchange['question']}: the ids are not those of the answer")
    return {"input.text": len(prompt_ids), "output.text": len(said) + ended}


def _read_deduction(books: Path) -> Decimal:
    """What left the tenants' balances, from the bare rows of the ledger."""
    with sqlite3.connect(f"file:{books}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT p.picos FROM ledger_postings p JOIN ledger_transactions t ON t.id = p.transaction_id"
            " WHERE t.template IN ('place_holds', 'settle_holds',"
            "  'lease_funds', 'settle_leased', 'return_lease')"
            " AND (p.account_id LIKE 'prepaid:%' OR p.account_id LIKE 'held:%'"
            "  OR p.account_id LIKE 'leased:%')"
        ).fetchall()
    connection.close()
    return -sum((Decimal(picos) for (picos,) in rows), Decimal(0)) / PICOS


if __name__ == "__main__":
    found = main(*(Path(argument) for argument in sys.argv[1:5]))
    print("\n".join(found))
    sys.exit(1 if found else 0)
