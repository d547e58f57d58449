"""Streamed pieces join to the whole text, and never show half of a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.engine.detokenizer import REPLACEMENT, Detokenizer
from steelyard.engine.loaded_model import LoadedModel


@pytest.fixture(scope="module")
def model(tiny: LoadedModel) -> LoadedModel:
    return tiny


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_pieces_of_any_text_join_to_it(model: LoadedModel, text: str) -> None:
    token_ids = model.encode_text(text)
    detokenizer = Detokenizer(model.decode)

    pieces = [detokenizer.add(token_id) for token_id in token_ids]

    assert "".join(pieces) + detokenizer.flush() == model.decode(token_ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(token_ids=st.lists(st.integers(min_value=0, max_value=300), max_size=60))
def test_the_pieces_of_any_tokens_join_to_their_decoding(
    model: LoadedModel, token_ids: list[int]
) -> None:
    detokenizer = Detokenizer(model.decode)

    pieces = [detokenizer.add(token_id) for token_id in token_ids]

    assert "".join(pieces) + detokenizer.flush() == model.decode(token_ids)


def test_a_character_of_many_tokens_comes_in_one_piece(model: LoadedModel) -> None:
    token_ids = [token_id for byte in "龘" for token_id in model.encode_text(byte)]
    detokenizer = Detokenizer(model.decode)

    pieces = [detokenizer.add(token_id) for token_id in token_ids]

    assert len(token_ids) > 1
    assert pieces == [""] * (len(token_ids) - 1) + ["龘"]
