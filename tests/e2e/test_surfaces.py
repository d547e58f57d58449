"""Every surface with its official client, against running processes: the client just works, and
each call is on the bill."""

from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.scripted_product import ScriptedProduct, running_scripted_product

pytestmark = pytest.mark.slow
SCRIPT = """
models: [scripted]
paths: [/v1/chat/completions, /v1/completions]
answers:
  - when: {contains: weather}
    words: []
    calls: [{name: weather, arguments: {city: Paris}}]
    prompt_tokens: 30
  - when: {contains: schema}
    words: ['{"city":', '"Paris"}']
  - when: {contains: think}
    thought: [let, ' me see']
    words: [forty, -two]
    usage: {prompt_tokens: 9, completion_tokens: 4, total_tokens: 13,
            prompt_tokens_details: {cached_tokens: 5},
            completion_tokens_details: {reasoning_tokens: 2}}
  - words: [Paris, ' it is']
"""
ASKED: Any = [{"role": "user", "content": "the capital of France?"}]
WEATHER: Any = [{"role": "user", "content": "the weather in Paris?"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
COST = Decimal(7 * 2 + 2 * 10) / 10**6


class Place(BaseModel):
    city: str


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Generator[ScriptedProduct]:
    folder: Path = tmp_path_factory.mktemp("surfaces")
    with running_scripted_product(folder, SCRIPT) as running:
        yield running


@pytest.fixture(scope="module")
def secret(product: ScriptedProduct) -> str:
    return product.tenant("acme", dollars="10")


def extra(usage: Any) -> dict[str, Any]:
    assert usage is not None
    return usage.model_extra or {}


def test_openai_chat_whole_and_streamed(product: ScriptedProduct, secret: str) -> None:
    client = product.openai(secret)

    whole = client.chat.completions.create(model="scripted", messages=ASKED)
    chunks = list(
        client.chat.completions.create(
            model="scripted",
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert whole.choices[0].message.content == "Paris it is"
    assert Decimal(extra(whole.usage)["cost"]) == COST
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Paris it is"
    assert Decimal(extra(chunks[-1].usage)["cost"]) == COST
    for usage in (whole.usage, chunks[-1].usage):
        assert Decimal(product.settled(extra(usage)["event_id"], secret)["cost"]) == COST


def test_openai_tools_and_structured_output(product: ScriptedProduct, secret: str) -> None:
    client = product.openai(secret)
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}

    called = client.chat.completions.create(
        model="scripted",
        messages=WEATHER,
        tools=[tool],
    )
    parsed = client.chat.completions.parse(
        model="scripted",
        messages=[{"role": "user", "content": "by schema"}],
        response_format=Place,
    )

    calls: Any = called.choices[0].message.tool_calls
    assert calls[0].function.name == "weather"
    assert called.choices[0].finish_reason == "tool_calls"
    assert parsed.choices[0].message.parsed == Place(city="Paris")
    assert product.asked_upstream()[-1]["body"]["response_format"]["type"] == "json_schema"


def test_openai_choices_are_each_paid_for(product: ScriptedProduct, secret: str) -> None:
    answer = product.openai(secret).chat.completions.create(
        model="scripted",
        messages=ASKED,
        n=3,
        logprobs=True,
        max_tokens=5,
    )

    event = product.settled(extra(answer.usage)["event_id"], secret)
    assert len(answer.choices) == 3
    assert event["meters"]["output.text"] == "6"
    assert Decimal(event["held"]) >= Decimal(15 * 10) / 10**6
    assert product.asked_upstream()[-1]["body"]["max_tokens"] == 5


def test_openai_completion_with_a_suffix(product: ScriptedProduct, secret: str) -> None:
    answer = product.openai(secret).completions.create(
        model="scripted", prompt="def f(", suffix="return x", max_tokens=9
    )

    assert answer.choices[0].text == "Paris it is"
    assert product.asked_upstream()[-1]["body"]["suffix"] == "return x"
    assert Decimal(extra(answer.usage)["cost"]) == COST


def test_openai_responses_whole_and_streamed(product: ScriptedProduct, secret: str) -> None:
    client = product.openai(secret)

    whole = client.responses.create(model="scripted", input="the capital of France?")
    events: list[Any] = list(
        client.responses.create(
            model="scripted",
            input=ASKED,
            stream=True,
            instructions="be brief",
        )
    )

    assert whole.output_text == "Paris it is"
    assert Decimal(extra(whole.usage)["cost"]) == COST
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Paris it is"
    assert Decimal(extra(last.response.usage)["cost"]) == COST
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Paris it is"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_openai_responses_tools_and_structured_output(
    product: ScriptedProduct, secret: str
) -> None:
    client = product.openai(secret)
    tool: Any = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}

    called = client.responses.create(model="scripted", input="the weather?", tools=[tool])
    with client.responses.stream(model="scripted", input="the weather?", tools=[tool]) as stream:
        final = stream.get_final_response()
    parsed = client.responses.parse(model="scripted", input="by schema", text_format=Place)

    for response in (called, final):
        call: Any = response.output[0]
        assert (call.type, call.name, call.arguments) == (
            "function_call",
            "weather",
            '{"city":"Paris"}',
        )
    assert parsed.output_parsed == Place(city="Paris")


def test_openai_embeddings_are_refused_where_the_server_has_none(
    product: ScriptedProduct, secret: str
) -> None:
    with pytest.raises(openai.NotFoundError, match="not served at /v1/embeddings"):
        product.openai(secret).embeddings.create(model="scripted", input="weigh me")


def test_openai_models(product: ScriptedProduct, secret: str) -> None:
    client = product.openai(secret)

    listed = client.models.list().data

    assert [model.id for model in listed] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonsense")


def test_openai_async(product: ScriptedProduct, secret: str) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{product.url}/v1", api_key=secret) as client:
            whole = await client.responses.create(model="scripted", input="hello")
            text = ""
            stream = await client.chat.completions.create(
                model="scripted",
                messages=ASKED,
                stream=True,
            )
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        return whole.output_text, text

    assert anyio.run(ask) == ("Paris it is", "Paris it is")


def test_anthropic_messages_whole_and_streamed(product: ScriptedProduct, secret: str) -> None:
    client = product.anthropic(secret)
    asked: Any = {"model": "scripted", "max_tokens": 50, "messages": ASKED, "system": "be brief"}

    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert [block.text for block in whole.content if block.type == "text"] == ["Paris it is"]
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (7, 2)
    assert whole.stop_reason == "end_turn"
    assert Decimal(extra(whole.usage)["cost"]) == COST
    assert (text, final.stop_reason) == ("Paris it is", "end_turn")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 2)
    asked_upstream = product.asked_upstream()[-1]["body"]
    assert asked_upstream["messages"][0] == {"role": "system", "content": "be brief"}
    assert asked_upstream["max_tokens"] == 50


def test_anthropic_tools(product: ScriptedProduct, secret: str) -> None:
    client = product.anthropic(secret)
    tools: Any = [{"name": "weather", "input_schema": SCHEMA}]
    asked: Any = {"model": "scripted", "max_tokens": 50, "messages": WEATHER, "tools": tools}

    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()

    for message in (whole, final):
        block: Any = message.content[0]
        assert (block.type, block.name, block.input) == ("tool_use", "weather", {"city": "Paris"})
        assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": "call_0", "content": "rain"}
    answered: Any = [
        *WEATHER,
        {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
        {"role": "user", "content": [result]},
    ]
    client.messages.create(**{**asked, "messages": answered})
    sent = product.asked_upstream()[-1]["body"]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["function"]["name"] == "weather"


def test_thoughts_and_cached_tokens_come_in_their_own_meters(
    product: ScriptedProduct, secret: str
) -> None:
    asked: Any = [{"role": "user", "content": "think"}]

    chat = product.openai(secret).chat.completions.create(model="scripted", messages=asked)
    message = product.anthropic(secret).messages.create(
        model="scripted", max_tokens=9, messages=asked
    )
    response = product.openai(secret).responses.create(model="scripted", input="think")

    meters = {
        "input.text": "4",
        "input.text.cache_read": "5",
        "output.text": "2",
        "output.text.reasoning": "2",
    }
    for usage in (chat.usage, message.usage, response.usage):
        assert product.settled(extra(usage)["event_id"], secret)["meters"] == meters
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 5)
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 5
    assert [block.type for block in message.content] == ["thinking", "text"]


def test_anthropic_counts_tokens(product: ScriptedProduct, secret: str) -> None:
    counted = product.anthropic(secret).messages.count_tokens(
        model="scripted",
        messages=ASKED,
    )

    assert counted.input_tokens == 7


def test_anthropic_async_and_its_errors(product: ScriptedProduct, secret: str) -> None:
    async def ask() -> str:
        asked: Any = {"model": "scripted", "max_tokens": 9, "messages": ASKED}
        async with (
            anthropic.AsyncAnthropic(base_url=product.url, api_key=secret) as client,
            client.messages.stream(**asked) as stream,
        ):
            return await stream.get_final_text()

    assert anyio.run(ask) == "Paris it is"
    with pytest.raises(anthropic.AuthenticationError):
        product.anthropic("sk-steelyard-nobody").messages.create(
            model="scripted",
            max_tokens=9,
            messages=ASKED,
        )
    with pytest.raises(anthropic.NotFoundError) as missing:
        product.anthropic(secret).messages.create(
            model="nonsense",
            max_tokens=9,
            messages=ASKED,
        )
    body: Any = missing.value.body
    assert body["error"]["type"] == "not_found_error"


def test_a_prompt_is_counted_and_priced_before_it_is_asked(
    product: ScriptedProduct, secret: str
) -> None:
    body = {"model": "scripted", "messages": ASKED, "max_tokens": 10}

    quoted = product.post("/v1/tokenize", secret, body).json()

    assert quoted["input_tokens"] == 7
    assert Decimal(quoted["cost"]["prompt"]) == Decimal(14) / 10**6
    assert Decimal(quoted["cost"]["highest"]) == Decimal(14 + 100) / 10**6


def test_a_call_is_told_in_full_to_its_own_organisation_only(
    product: ScriptedProduct, secret: str
) -> None:
    stranger = product.tenant("stranger")
    answer = product.post("/v1/chat/completions", secret, {"model": "scripted", "messages": ASKED})
    event_id = answer.headers["x-steelyard-event-id"]

    told = product.settled(event_id, secret)

    assert [line["amount"] for line in told["charge_lines"]] == ["0.000014", "0.00002"]
    assert told["upstream_usage"]["prompt_tokens"] == 7
    assert product.get(f"/v1/usage/{event_id}", stranger).status_code == 404
    assert product.get("/v1/usage/nonsense", secret).status_code == 404


def test_the_balance_is_told_to_the_key(product: ScriptedProduct, secret: str) -> None:
    told = product.get("/v1/balance", secret).json()

    assert told["payer"] == "acme"
    assert told["currency"] == "USD"
    assert Decimal(told["available"]) + Decimal(told["held"]) <= 10


def test_every_surface_ends_with_verified_books(product: ScriptedProduct, secret: str) -> None:
    assert httpx.get(f"{product.url}/health").status_code == 200

    verdict = product.command("verify")

    assert verdict["holds"] is True
