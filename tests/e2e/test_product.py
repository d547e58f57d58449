"""A user's first hour, through the official client and the command line."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import create_database
from tests.e2e.product import (
    INPUT_PRICE,
    MODEL,
    OUTPUT_PRICE,
    Product,
    picos,
    running_product,
    wait_until,
)

pytestmark = pytest.mark.slow
QUESTION: Any = [{"role": "user", "content": "你好, how much do I owe? 🙂"}]


def _price(usage: Any) -> int:
    return usage.prompt_tokens * INPUT_PRICE + usage.completion_tokens * OUTPUT_PRICE


def test_the_openai_client_gets_an_answer_with_its_price_on_it(product: Product) -> None:
    client = product.openai(product.tenant("plain"))

    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, extra_body={"return_token_ids": True}
    )

    usage: Any = answer.usage
    extra: Any = answer
    assert usage.completion_tokens == len(extra.choices[0].token_ids)
    assert usage.prompt_tokens == len(extra.prompt_token_ids)
    assert picos(usage.cost) == _price(usage)
    assert usage.currency == "USD"
    assert product.settled_balance_picos("plain") == 10**12 - _price(usage)


def test_a_stream_ends_with_the_same_priced_usage(product: Product) -> None:
    client = product.openai(product.tenant("streamed"))

    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks: list[Any] = list(stream)

    usage = chunks[-1].usage
    assert [chunk for chunk in chunks[:-1] if chunk.usage] == []
    assert usage.completion_tokens == 12
    assert picos(usage.cost) == _price(usage)
    assert product.settled_balance_picos("streamed") == 10**12 - _price(usage)
    assert product.events("streamed/it")[0]["id"] == usage.event_id


def test_a_stream_without_the_option_shows_no_usage_and_is_charged_all_the_same(
    product: Product,
) -> None:
    client = product.openai(product.tenant("quiet"))

    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, stream=True
    )
    chunks = list(stream)

    assert [chunk for chunk in chunks if chunk.usage] == []
    assert product.settled_balance_picos("quiet") < 10**12


def test_completions_and_the_plain_door_are_priced_alike(product: Product) -> None:
    secret = product.tenant("doors")

    completion = product.openai(secret).completions.create(
        model=MODEL, prompt="def f():", max_tokens=6
    )
    plain = product.post("/generate", secret, {"prompt": "hello", "max_new_tokens": 6}).json()

    usage: Any = completion.usage
    assert set(plain["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens", "cost"}
    spent = picos(usage.cost) + picos(plain["usage"]["cost"])
    assert product.settled_balance_picos("doors") == 10**12 - spent
    statement = product.command("statement", "doors/it")
    assert picos(statement["total"]) == spent
    assert statement["requests"] == 2


def test_prompts_are_cached_for_a_tenant_and_not_for_another(product: Product) -> None:
    mine, another = product.tenant("cached"), product.tenant("apart")
    prompt = "the same words again and again " * 12

    def cached_tokens(secret: str) -> int:
        answer = product.openai(secret).completions.create(model=MODEL, prompt=prompt, max_tokens=2)
        usage: Any = answer.usage
        return usage.prompt_tokens_details.cached_tokens

    first, again, elsewhere = cached_tokens(mine), cached_tokens(mine), cached_tokens(another)

    assert (first, elsewhere) == (0, 0)
    assert again > 0


def test_models_are_listed_with_their_price(product: Product) -> None:
    listed: Any = product.openai(product.tenant("models")).models.list().data

    assert [model.id for model in listed] == [MODEL]
    assert listed[0].pricing["meters"]["output.text"] == {"amount": "7", "per": 1000000}


def test_several_callers_at_once_are_each_charged_their_own(product: Product) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client = product.openai(product.tenant("many"))

    def ask(length: int) -> Any:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=length, seed=length
        )
        return answer.usage

    with ThreadPoolExecutor(6) as pool:
        usages = list(pool.map(ask, range(5, 17)))

    assert all(
        usage.completion_tokens <= length
        for usage, length in zip(usages, range(5, 17), strict=True)
    )
    assert product.settled_balance_picos("many") == 10**12 - sum(_price(usage) for usage in usages)


def test_a_client_that_leaves_pays_for_what_it_got_and_frees_its_place(product: Product) -> None:
    client = product.openai(product.tenant("leaver"))

    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1500, stream=True, temperature=0
    )
    received = 0
    for chunk in stream:
        received += bool(chunk.choices and chunk.choices[0].delta.content)
        if received == 5:
            stream.close()
            break

    wait_until(lambda: len(product.events("leaver/it")) == 1)
    event = product.events("leaver/it")[0]
    assert event["end_cause"] == "client_left"
    assert 5 <= event["output"] < 1500
    expected = event["input"] * INPUT_PRICE + event["output"] * OUTPUT_PRICE
    assert product.settled_balance_picos("leaver") == 10**12 - expected
    again: Any = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert again.usage.completion_tokens == 1


def test_a_revoked_key_is_refused_within_a_second(product: Product) -> None:
    client = product.openai(product.tenant("revoked"))
    client.models.list()

    product.command("key", "revoke", "revoked/it/key")

    def is_refused() -> bool:
        try:
            client.models.list()
        except openai.AuthenticationError as error:
            return error.code == "key_revoked"
        return False

    wait_until(is_refused, within_s=5)


def test_everything_that_happened_here_is_verified(product: Product) -> None:
    verdict = product.verdict()

    assert verdict["holds"], verdict
    assert any(check["compared"] > 20 for check in verdict["checks"])


def test_the_same_first_hour_on_postgresql(
    tiny_model: Path, tmp_path: Path, postgres_url: str
) -> None:
    url = create_database(postgres_url, "product")
    settings = {"STEELYARD_MODEL": str(tiny_model), "STEELYARD_DATABASE_URL": url}

    with running_product(tmp_path, **settings) as product:
        client = product.openai(product.tenant("elephant"))
        usage: Any = client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=9
        ).usage

        assert product.settled_balance_picos("elephant") == 10**12 - _price(usage)
        assert product.verdict()["holds"]
