"""Chat overhead: exact by the model's own template, by OpenAI's rule for OpenAI's models."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from steelyard.clock import FakeClock
from steelyard.counting.chat_template import ChatTemplate, TemplateRefuses
from steelyard.counting.model_counter import (
    ChatNotCountable,
    ContentNotCountable,
    Counted,
    ModelCounter,
)
from steelyard.counting.pin import Proof, Registered
from steelyard.counting.registry import OpenedTokenizer
from steelyard.counting.tokenizer_files import read_tokenizer_files
from tests.counting.vocabularies import pin_of, reference
from tests.engine.tiny_model import make_tiny_model

CLOCK = FakeClock(datetime(2026, 11, 25, tzinfo=UTC))
# The examples of OpenAI's cookbook, with the counts that it prints.
COOKBOOK_MESSAGES = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate "
        "jargon into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities "
        "for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client "
        "deliverable.",
    },
]
WEATHER_MESSAGES = [
    {
        "role": "system",
        "content": "You are a helpful assistant that can answer to questions about the weather.",
    },
    {"role": "user", "content": "What's the weather like in San Francisco?"},
]
WEATHER_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {
                        "type": "string",
                        "description": "The city and state, e.g. San Francisco, CA",
                    },
                    "unit": {
                        "type": "string",
                        "description": "The unit of temperature to return",
                        "enum": ["celsius", "fahrenheit"],
                    },
                },
                "required": ["location"],
            },
        },
    }
]
# Writes tools as Llama 3.1 and Qwen do: as JSON in the system message.
TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson(indent=2) }}
{%- endfor %}
Today is {{ strftime_now("%d %B %Y") }}.<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- elif message.role == "forbidden" %}{{ raise_exception("no such role") }}
    {%- else %}{{ bos_token }}<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "你好，世界 👨‍👩‍👧"}],
    [{"role": "system", "content": 'Be <brief> & "kind".'}, {"role": "user", "content": " hi \n"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and مرحبا?"},
    ],
]


@pytest.mark.parametrize(
    ("encoding", "messages", "with_tools"), [("cl100k", 129, 105), ("o200k", 124, 101)]
)
def test_the_cookbooks_own_examples_come_out_as_it_prints_them(
    encoding: str, messages: int, with_tools: int, vocabulary_folder: Path
) -> None:
    counter = _openai_counter(encoding, vocabulary_folder)

    plain = counter.count_messages(COOKBOOK_MESSAGES)
    tools = counter.count_messages(WEATHER_MESSAGES, tools=WEATHER_TOOLS)

    assert plain == Counted(messages, "tokenizer")
    assert tools == Counted(with_tools, "estimate")


def test_what_no_rule_covers_is_an_estimate(vocabulary_folder: Path) -> None:
    counter = _openai_counter("o200k", vocabulary_folder)
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}

    assert counter.count_messages([*WEATHER_MESSAGES, call]).source == "estimate"


def test_parts_of_text_count_as_the_text_and_pictures_not_at_all(vocabulary_folder: Path) -> None:
    counter = _openai_counter("o200k", vocabulary_folder)
    parts = [{"type": "text", "text": "What's the weather"}, {"type": "text", "text": " like?"}]
    picture = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]

    whole = counter.count_messages([{"role": "user", "content": "What's the weather like?"}])

    assert counter.count_messages([{"role": "user", "content": parts}]) == whole
    with pytest.raises(ContentNotCountable):
        counter.count_messages([{"role": "user", "content": picture}])


@pytest.mark.slow
def test_a_model_without_a_template_has_no_chat_to_count(vocabulary_folder: Path) -> None:
    pin = pin_of("llama-2", vocabulary_folder)
    registered = Registered(model="m", pin=pin, proof=Proof(kind="none"), registered_at="")
    opened = OpenedTokenizer(registered, reference("llama-2", vocabulary_folder), None)

    with pytest.raises(ChatNotCountable):
        ModelCounter(opened, clock=CLOCK).count_messages(WEATHER_MESSAGES)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, WEATHER_TOOLS])
def test_a_template_renders_as_transformers_renders_it(
    messages: list[dict[str, Any]], tools: Any
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    words = {"bos_token": "<|begin|>"}
    today = FakeClock(datetime.now(UTC))  # noqa: TID251 - transformers asks the machine's clock
    ours = ChatTemplate(TOOL_TEMPLATE, words=words, clock=today).render(messages, tools=tools)

    given: dict[str, Any] = {"tools": tools, "chat_template": TOOL_TEMPLATE, **words}
    theirs, _ = render_jinja_template([messages], add_generation_prompt=True, **given)

    assert ours == theirs[0]


def test_a_template_that_says_no_is_a_refusal() -> None:
    template = ChatTemplate(TOOL_TEMPLATE, words={}, clock=CLOCK)

    with pytest.raises(TemplateRefuses, match="no such role"):
        template.render([{"role": "forbidden", "content": ""}])


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    reaching = "{{ messages.__class__.__mro__[1].__subclasses__() }}"

    with pytest.raises(TemplateRefuses):
        ChatTemplate(reaching, words={}, clock=CLOCK).render([{"role": "user", "content": "x"}])


def test_a_conversation_counts_as_our_engine_counts_it_for_the_same_folder(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    from steelyard.engine.loaded_model import TokenizerCalls
    from steelyard.engine.tokenizer_facts import hash_tokenizer

    folder = make_tiny_model(tmp_path / "tiny")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    engine = TokenizerCalls(tokenizer)
    files = read_tokenizer_files(folder)
    counter = ModelCounter(_opened(files), clock=CLOCK)

    ours = [counter.count_messages(messages).tokens for messages in CONVERSATIONS]
    prompt = counter.count_prompt("你好 world").tokens

    assert ours == [len(engine.encode_messages(messages)) for messages in CONVERSATIONS]
    assert prompt == len(engine.encode("你好 world", add_special_tokens=True))
    assert files.served_sha256 == hash_tokenizer(tokenizer, folder)


def test_another_template_is_another_pin(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    before = read_tokenizer_files(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")

    after = read_tokenizer_files(folder)

    assert after.pin.vocabulary_sha256 == before.pin.vocabulary_sha256
    assert after.pin.sha256 != before.pin.sha256


def test_an_answer_counts_the_token_that_ended_it_only_where_the_server_does(
    vocabulary_folder: Path, tmp_path: Path
) -> None:
    hosted = _openai_counter("o200k", vocabulary_folder)
    own = ModelCounter(_opened(read_tokenizer_files(make_tiny_model(tmp_path / "t"))), clock=CLOCK)

    for counter, added in ((hosted, 0), (own, 1)):
        assert counter.count_answer("Paris.", is_ended=True) == counter.count_text("Paris.") + added
        assert counter.count_answer("Paris.", is_ended=False) == counter.count_text("Paris.")


def _openai_counter(name: str, folder: Path) -> ModelCounter:
    registered = Registered(
        model="gpt",
        pin=pin_of(name, folder),
        proof=Proof(kind="none"),
        registered_at="",
        known_as=name,
    )
    return ModelCounter(OpenedTokenizer(registered, reference(name, folder), None), clock=CLOCK)


def _opened(files: Any) -> OpenedTokenizer:
    from steelyard.counting.libraries import open_tokenizer

    registered = Registered(model="tiny", pin=files.pin, proof=Proof(kind="none"), registered_at="")
    tokenizer = open_tokenizer(files.vocabulary, files.pin)
    return OpenedTokenizer(registered, tokenizer, files.chat_template)
