"""What can be done with a document: the words that ask for it, of a part and of the parts' answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Task:
    """Two instructions: for a part of the document, and for what the parts gave."""

    for_part: str
    for_answers: str


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "summary": Task(
            "Summarise this text in a few sentences.",
            "These are summaries of the parts of one text, in order. Make one summary of them.",
        ),
        "minutes": Task(
            "Write minutes of this part of a meeting: decisions, and who does what until when.",
            "These are minutes of the parts of one meeting, in order. Make one list of them.",
        ),
        "contract": Task(
            "List what this part of a contract obliges each party to: dates, amounts, risks.",
            "These are lists of the parts of one contract, in order. Make one list, without doubles.",
        ),
        "paper": Task(
            "Say what this part of a paper asks, does, finds, and leaves open.",
            "These are notes on the parts of one paper, in order. Make one review of them.",
        ),
    }
)


def own_task(prompt: str) -> Task:
    return Task(prompt, f"{prompt}\n\nThese are the answers for the parts of one text, in order.")


def ask_for(instruction: str, text: str, *, model: str, tokens_max: int) -> dict[str, Any]:
    """The chat that asks for a part."""
    return {
        "model": model,
        "temperature": 0,
        "max_tokens": tokens_max,
        "messages": [{"role": "user", "content": f"{instruction}\n\n{text}"}],
    }
