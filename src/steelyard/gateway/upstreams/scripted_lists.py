"""Scripted answers that are lists: embeddings, classes, moderations and ranks."""

import re
from typing import Any, Final

from steelyard.gateway.upstreams.habits import CLASSIFICATIONS, EMBEDDINGS, MODERATIONS, RERANK

Document = dict[str, Any]
LIST_PATHS: Final = frozenset({EMBEDDINGS, CLASSIFICATIONS, MODERATIONS, RERANK})
EMBEDDING: Final = [0.1, 0.2, 0.3]
# The class of a text is its first word; a moderation flags a text with this word.
FLAGGED: Final = "flagged"


def list_document(path: str, asked: Document, *, model: str) -> Document:
    """The answer at one of the LIST_PATHS, without its usage."""
    given = asked.get("input", [])
    inputs: list[Any] = [given] if isinstance(given, str) else given
    if path == EMBEDDINGS:
        vectors = [{"object": "embedding", "embedding": EMBEDDING} for _ in inputs]
        return {"object": "list", "model": model, "data": _numbered(vectors)}
    if path == CLASSIFICATIONS:
        classes = [{"label": _first_word(str(one)), "score": 1.0} for one in inputs]
        return {"object": "list", "model": model, "data": _numbered(classes)}
    if path == MODERATIONS:
        has_parts = bool(inputs) and isinstance(inputs[0], dict)
        results = [_moderation(str(one)) for one in ([inputs] if has_parts else inputs)]
        return {"id": "modr-scripted", "model": model, "results": results}
    documents: list[Any] = asked["documents"]
    ranks = [
        {"index": index, "relevance_score": 1 / (1 + index)} for index in range(len(documents))
    ]
    return {"id": "rerank-scripted", "model": model, "results": ranks[: asked.get("top_n")]}


def _numbered(entries: list[Document]) -> list[Document]:
    return [{"index": index, **entry} for index, entry in enumerate(entries)]


def _first_word(text: str) -> str:
    words = re.findall(r"\w+", text)
    return words[0].lower() if words else ""


def _moderation(text: str) -> Document:
    is_flagged = FLAGGED in text
    return {
        "flagged": is_flagged,
        "categories": {"harassment": is_flagged},
        "category_scores": {"harassment": float(is_flagged)},
        "category_applied_input_types": {"harassment": ["text"]},
    }
