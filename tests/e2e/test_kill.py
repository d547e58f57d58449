"""SIGKILL of each process in the middle of its work: nothing lost, nothing twice."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.product import INPUT_PRICE, MODEL, OUTPUT_PRICE, Product, wait_until

pytestmark = pytest.mark.slow
QUESTION: Any = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("role", ["worker", "gateway", "engine"])
def test_a_killed_process_comes_back_and_the_books_are_right(role: str, product: Product) -> None:
    secret = product.tenant(f"kill-{role}")
    client = product.openai(secret)

    def ask(_: int) -> Any:
        try:
            return client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=60
            ).usage
        except openai.APIError:
            return None

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(12)]
        wait_until(lambda: any(question.done() for question in asked))
        product.kill(role)
        usages = [question.result() for question in asked]
    product.wait_until_ready()
    answered = [usage for usage in usages if usage]
    after: Any = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5).usage
    answered.append(after)

    balance = product.settled_balance_picos(f"kill-{role}")
    events = {event["id"]: event for event in product.events(f"kill-{role}/it")}
    for usage in answered:
        event = events[usage.event_id]
        assert (event["input"], event["output"]) == (usage.prompt_tokens, usage.completion_tokens)
    charged = sum(e["input"] * INPUT_PRICE + e["output"] * OUTPUT_PRICE for e in events.values())
    assert balance == 10**12 - charged
    assert product.verdict()["holds"], product.verdict()
