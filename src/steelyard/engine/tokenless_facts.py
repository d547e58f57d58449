"""What a gateway is told of a model that has no tokens: a bound on them is that there are none."""

from collections.abc import Sequence
from typing import Any


def tokenless_facts(paths: Sequence[str]) -> dict[str, Any]:
    """The facts of such a model, which is served at these paths."""
    return {
        "tokenizer_sha256": "",
        "byte_level": True,
        "bytes_per_token_max": 1,
        "template_tokens_base": 0,
        "template_tokens_per_message": 0,
        "special_tokens_added": 0,
        "has_chat_template": False,
        "paths": paths,
    }
