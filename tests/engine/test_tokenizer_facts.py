"""What a caller may conclude about a prompt's tokens without tokenizing it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.tokenizer_facts import is_byte_level, measure_template

BYTE_LEVEL: dict[str, Any] = {
    "model": {"type": "BPE"},
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
}
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(scope="module")
def model(tiny: LoadedModel) -> LoadedModel:
    return tiny


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=8))
def test_a_conversation_never_has_more_tokens_than_its_bound(
    model: LoadedModel, turns: list[tuple[str, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    facts = model.facts

    tokens = len(model.encode_messages(messages))

    content_bytes = sum(len(content.encode()) for _, content in turns)
    overhead = facts.template_tokens_base + len(turns) * facts.template_tokens_per_message
    assert tokens <= content_bytes + overhead


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_a_text_never_has_more_tokens_than_bytes(model: LoadedModel, text: str) -> None:
    tokens = len(model.encode_text(text))

    assert model.facts.byte_level
    assert tokens <= len(text.encode()) + model.facts.special_tokens_added


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram"}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": None},
    ],
    ids=lambda change: json.dumps(change),
)
def test_a_tokenizer_that_could_grow_a_text_is_not_byte_level(change: dict[str, Any]) -> None:
    changed = is_byte_level(BYTE_LEVEL | change)

    assert is_byte_level(BYTE_LEVEL)
    assert not changed


def test_a_default_system_message_counts_once_not_for_every_message() -> None:
    def count_tokens(messages: list[dict[str, str]]) -> int:
        default_system = 0 if messages[0]["role"] == "system" else 20
        content = sum(len(message["content"].encode()) for message in messages)
        return default_system + 3 + sum(5 for _ in messages) + content

    base, per_message = measure_template(count_tokens)

    assert (base, per_message) == (22, 6)
