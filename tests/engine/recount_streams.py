"""Counts streams again with nothing of ours: the model's tokenizer.json and chat template, no more.

Usage: python recount_streams.py MODEL_FOLDER STREAMS_JSON
Each stream has `messages`, `prompt_token_ids`, `token_ids`, `pieces` and `usage` as a client got
them. Exit status 0 says that every count and every character agrees.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

HALF_A_CHARACTER = "\ufffd"


def main(folder: Path, streams: Path) -> list[str]:
    """Every disagreement that was found."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "chat_template.jinja").read_text()
    )
    return [
        f"stream {number}: {complaint}"
        for number, stream in enumerate(json.loads(streams.read_text()))
        for complaint in complaints(stream, tokenizer, template)
    ]


def complaints(stream: dict[str, Any], tokenizer: Tokenizer, template: Any) -> list[str]:
    """What is wrong with one stream."""
    ids, pieces, usage = stream["token_ids"], stream["pieces"], stream["usage"]
    prompt = template.render(messages=stream["messages"], add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    claims = {
        "the prompt that was fed is another": prompt_ids == stream["prompt_token_ids"],
        f"{len(prompt_ids)} prompt tokens, {usage} reported": (
            usage["prompt_tokens"] == len(prompt_ids)
        ),
        f"{len(ids)} tokens were returned, {usage} reported": (
            usage["completion_tokens"] == len(ids)
        ),
        f"total of {usage}": usage["total_tokens"] == len(prompt_ids) + len(ids),
        f"the pieces are not the text {text!r}": "".join(pieces) == text,
        # Only where the limit cuts a character in two can its beginning be shown, and at the end.
        f"half a character was shown: {pieces}": not any(
            HALF_A_CHARACTER in piece for piece in pieces[:-1]
        ),
    }
    return [complaint for complaint, is_true in claims.items() if not is_true]


if __name__ == "__main__":
    found = main(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found))
    sys.exit(1 if found else 0)
