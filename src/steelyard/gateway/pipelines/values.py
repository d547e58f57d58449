"""Values out of earlier stages, put where a stage names them."""

import json
from collections.abc import Mapping
from typing import Any, cast

from steelyard.gateway.pipelines.pipeline import REFERENCE


def filled(template: Any, scope: Mapping[str, Any]) -> Any:
    """The template with every `${path}` replaced; a text that is one reference alone becomes the
    value itself, of whatever type."""
    if isinstance(template, str):
        whole = REFERENCE.fullmatch(template)
        if whole:
            return found(whole[1], scope)
        return REFERENCE.sub(lambda match: _text(found(match[1], scope)), template)
    if isinstance(template, dict):
        parts = cast("dict[str, Any]", template)
        return {name: filled(part, scope) for name, part in parts.items()}
    if isinstance(template, list):
        return [filled(part, scope) for part in cast("list[Any]", template)]
    return template


def found(path: str, scope: Mapping[str, Any]) -> Any:
    """The value at a path of names and places; None where there is nothing, as in a stage that was
    left out."""
    head, star, tail = path.partition(".*")
    if star:
        entries = found(head, scope)
        listed = cast("list[Any]", entries) if isinstance(entries, list) else []
        # What is below each entry of a list.
        return [found(f"entry{tail}", {"entry": entry}) for entry in listed]
    value: Any = scope
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(step)
        elif isinstance(value, list) and step.isdigit():
            entries = cast("list[Any]", value)
            value = entries[int(step)] if int(step) < len(entries) else None
        else:
            return None
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
