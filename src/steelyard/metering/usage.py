"""Usage: whole counts per meter. Meters are disjoint, so a sum over them counts nothing twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

INPUT_TEXT: Final = "input.text"
INPUT_TEXT_CACHE_READ: Final = "input.text.cache_read"
INPUT_TEXT_CACHE_WRITE: Final = "input.text.cache_write"
OUTPUT_TEXT: Final = "output.text"
OUTPUT_TEXT_REASONING: Final = "output.text.reasoning"
CALL: Final = "call"
ITEM: Final = "item"

METERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        INPUT_TEXT: "tokens of the prompt that were processed anew",
        INPUT_TEXT_CACHE_READ: "tokens of the prompt that came from the prompt cache",
        INPUT_TEXT_CACHE_WRITE: "tokens of the prompt that were written to the prompt cache",
        OUTPUT_TEXT: "tokens of the answer",
        OUTPUT_TEXT_REASONING: "tokens of reasoning that precede the answer",
        CALL: "answered requests",
        ITEM: "answered items of a batch",
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts per meter; a meter with a count of zero is left out, so equal usage is equal."""

    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        for meter, count in self.counts.items():
            assert meter in METERS, f"unknown meter {meter!r}"
            assert type(count) is int, f"{meter}: counts are whole, got {count!r}"
            assert count > 0, f"{meter}: a count is positive, got {count}"

    def count(self, meter: str) -> int:
        return self.counts.get(meter, 0)

    @property
    def input_tokens(self) -> int:
        """All tokens of the prompt, whether cached or not (what OpenAI calls prompt_tokens)."""
        return sum(
            self.count(m) for m in (INPUT_TEXT, INPUT_TEXT_CACHE_READ, INPUT_TEXT_CACHE_WRITE)
        )

    @property
    def output_tokens(self) -> int:
        """All tokens produced, reasoning included (what OpenAI calls completion_tokens)."""
        return self.count(OUTPUT_TEXT) + self.count(OUTPUT_TEXT_REASONING)


NO_USAGE: Final = Usage({})


def text_usage(*, input_tokens: int, output_tokens: int) -> Usage:
    """The usage of a plain text answer."""
    counts = {INPUT_TEXT: input_tokens, OUTPUT_TEXT: output_tokens}
    return Usage({meter: count for meter, count in counts.items() if count})
