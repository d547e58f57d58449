"""Usage: whole counts per meter. Meters are disjoint, so a sum over them counts nothing twice."""

from collections.abc import Collection, Container, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

INPUT_TEXT: Final = "input.text"
INPUT_TEXT_CACHE_READ: Final = "input.text.cache_read"
INPUT_TEXT_CACHE_WRITE: Final = "input.text.cache_write"
INPUT_TEXT_CACHE_WRITE_1H: Final = "input.text.cache_write_1h"
INPUT_AUDIO_TOKENS: Final = "input.audio.tokens"
INPUT_AUDIO_TOKENS_CACHE_READ: Final = "input.audio.tokens.cache_read"
INPUT_AUDIO_SECONDS: Final = "input.audio.seconds"
INPUT_IMAGE_TOKENS: Final = "input.image.tokens"
INPUT_IMAGE_TOKENS_CACHE_READ: Final = "input.image.tokens.cache_read"
INPUT_CHARACTERS: Final = "input.characters"
OUTPUT_TEXT: Final = "output.text"
OUTPUT_TEXT_REASONING: Final = "output.text.reasoning"
OUTPUT_AUDIO_TOKENS: Final = "output.audio.tokens"
OUTPUT_AUDIO_CHARACTERS: Final = "output.audio.characters"
OUTPUT_TRANSCRIPT_TOKENS: Final = "output.transcript.tokens"
OUTPUT_TRANSCRIPT_CHARACTERS: Final = "output.transcript.characters"
OUTPUT_IMAGE_COUNT: Final = "output.image.count"
OUTPUT_IMAGE_STEPS: Final = "output.image.steps"
OUTPUT_IMAGE_PIXELS: Final = "output.image.pixels"
OUTPUT_IMAGE_WIDTH: Final = "output.image.width"
OUTPUT_IMAGE_HEIGHT: Final = "output.image.height"
OUTPUT_IMAGE_TOKENS: Final = "output.image.tokens"
SEARCH: Final = "search"
CALL: Final = "call"
CACHE_HIT: Final = "cache.hit"
ITEM: Final = "item"
ENGINE_GPU_MICROSECONDS: Final = "engine.gpu_microseconds"
ENGINE_CPU_MICROSECONDS: Final = "engine.cpu_microseconds"

METERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        INPUT_TEXT: "tokens of the prompt that were processed anew",
        INPUT_TEXT_CACHE_READ: "tokens of the prompt that came from the prompt cache",
        INPUT_TEXT_CACHE_WRITE: "tokens of the prompt that were written to the prompt cache",
        INPUT_TEXT_CACHE_WRITE_1H: "tokens of the prompt that were written to the cache for an hour",
        INPUT_AUDIO_TOKENS: "tokens of sound in the prompt that were processed anew",
        INPUT_AUDIO_TOKENS_CACHE_READ: "tokens of sound that came from the prompt cache",
        INPUT_AUDIO_SECONDS: "seconds of sound that were listened to",
        INPUT_IMAGE_TOKENS: "tokens of images in the prompt that were processed anew",
        INPUT_IMAGE_TOKENS_CACHE_READ: "tokens of images that came from the prompt cache",
        INPUT_CHARACTERS: "characters of the input, where a model is priced by them",
        OUTPUT_TEXT: "tokens of the answer",
        OUTPUT_TEXT_REASONING: "tokens of reasoning that precede the answer",
        OUTPUT_AUDIO_TOKENS: "tokens of sound in the answer",
        OUTPUT_AUDIO_CHARACTERS: "characters of text that were spoken",
        OUTPUT_TRANSCRIPT_TOKENS: "tokens of the transcript of sound",
        OUTPUT_TRANSCRIPT_CHARACTERS: "characters of the transcript of sound",
        OUTPUT_IMAGE_COUNT: "images that were made",
        OUTPUT_IMAGE_STEPS: "steps that were taken, each for all images of the request",
        OUTPUT_IMAGE_PIXELS: "pixels of all images of the request",
        OUTPUT_IMAGE_WIDTH: "pixels across of each image",
        OUTPUT_IMAGE_HEIGHT: "pixels down of each image",
        OUTPUT_IMAGE_TOKENS: "tokens of images in the answer",
        SEARCH: "searches of the web on behalf of the request",
        CALL: "answered requests",
        CACHE_HIT: "answers that came from the answer cache",
        ITEM: "items of a request that were answered, such as texts that were classified",
        ENGINE_GPU_MICROSECONDS: "microseconds of a GPU that were this request's share",
        ENGINE_CPU_MICROSECONDS: "microseconds of CPUs that were this request's share, without a GPU",
    }
)
INPUT_TOKENS: Final = (
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
    INPUT_AUDIO_TOKENS,
    INPUT_AUDIO_TOKENS_CACHE_READ,
    INPUT_IMAGE_TOKENS,
    INPUT_IMAGE_TOKENS_CACHE_READ,
)
OUTPUT_TOKENS: Final = (
    OUTPUT_TEXT,
    OUTPUT_TEXT_REASONING,
    OUTPUT_AUDIO_TOKENS,
    OUTPUT_TRANSCRIPT_TOKENS,
    OUTPUT_IMAGE_TOKENS,
)
# The same work in several units: the price book says which of them count, and admission sees to it
# that one does. The others are not charged.
UNITS_OF_CHOICE: Final = frozenset(
    (
        INPUT_AUDIO_SECONDS,
        OUTPUT_TRANSCRIPT_TOKENS,
        OUTPUT_TRANSCRIPT_CHARACTERS,
        OUTPUT_IMAGE_COUNT,
        OUTPUT_IMAGE_STEPS,
        OUTPUT_IMAGE_PIXELS,
        OUTPUT_IMAGE_WIDTH,
        OUTPUT_IMAGE_HEIGHT,
    )
)

# What the work took of the machine: reported, and charged only where the price book names it.
ENGINE_TIME: Final = frozenset((ENGINE_GPU_MICROSECONDS, ENGINE_CPU_MICROSECONDS))

_OUTPUT_METERS: Final = frozenset(meter for meter in METERS if meter.startswith("output."))
_INPUT_TOKENS: Final = frozenset(INPUT_TOKENS)
_OUTPUT_TOKENS: Final = frozenset(OUTPUT_TOKENS)
# What a budget of tokens counts.
TOKEN_METERS: Final = frozenset((*INPUT_TOKENS, *OUTPUT_TOKENS))


# What has no price where the price book does not name it.
_NOBODYS: Final = frozenset((SEARCH, ITEM, CACHE_HIT, *ENGINE_TIME))
_KNOWN: Final = frozenset(METERS)
# For each of some meters the one that it is charged as; None: it is not charged.
Fold = tuple[str | None, ...]
FOLDS_REMEMBERED_MAX: Final = 1_000


class Usage(msgspec.Struct, frozen=True):
    """Counts per meter; a meter with a count of zero is left out, so equal usage is equal."""

    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        for meter, count in self.counts.items():
            assert meter in _KNOWN, f"unknown meter {meter}"
            assert type(count) is int, f"counts are whole, got {self.counts}"
            assert count > 0, f"counts are positive, got {self.counts}"

    def count(self, meter: str) -> int:
        return self.counts.get(meter, 0)

    def with_one(self, meter: str) -> "Usage":
        """The same usage and one of a meter that is not in it."""
        assert meter not in self.counts, f"{meter} is counted already"
        return Usage({**self.counts, meter: 1})

    def of_prompt(self) -> "Usage":
        """The part of it that was read, without what was written."""
        return Usage({m: count for m, count in self.counts.items() if m in INPUT_TOKENS})

    def folded(
        self, named: Container[str], *, known: "dict[tuple[str, ...], Fold] | None" = None
    ) -> "Usage":
        """The same usage in named meters only: tokens of a meter that is not named are text.

        A search, an item, a hit of the answer cache or engine time that is not named has no price,
        and is the operator's own affair. So are the tokens of work that is counted in items or in
        units of choice, where text is not named. Of the units of choice, those that are named were
        chosen. What becomes of which meters is remembered in `known`, if it is given, for the same
        named meters.
        """
        meters = tuple(self.counts)
        fold = known.get(meters) if known is not None else None
        if fold is None:
            fold = _find_fold(meters, named)
            if known is not None and len(known) < FOLDS_REMEMBERED_MAX:
                known[meters] = fold
        if fold == meters:
            return self
        counts: dict[str, int] = {}
        for count, meter in zip(self.counts.values(), fold, strict=True):
            if meter is not None:
                counts[meter] = counts.get(meter, 0) + count
        return Usage(counts)

    @property
    def has_output(self) -> bool:
        """Whether anything was produced, whatever it is counted in."""
        return not _OUTPUT_METERS.isdisjoint(self.counts)

    @property
    def input_tokens(self) -> int:
        """All tokens of the prompt, whether cached or not (what OpenAI calls prompt_tokens)."""
        return _sum_of(self.counts, _INPUT_TOKENS)

    @property
    def output_tokens(self) -> int:
        """All tokens produced, reasoning included (what OpenAI calls completion_tokens)."""
        return _sum_of(self.counts, _OUTPUT_TOKENS)


NO_USAGE: Final = Usage({})


def _find_fold(meters: Collection[str], named: Container[str]) -> Fold:
    has_units = ITEM in meters or not UNITS_OF_CHOICE.isdisjoint(meters)
    is_priced_otherwise = has_units and INPUT_TEXT not in named
    fold: list[str | None] = []
    for meter in meters:
        if meter in named:
            fold.append(meter)
        elif meter in UNITS_OF_CHOICE or meter in _NOBODYS:
            fold.append(None)
        elif meter in _INPUT_TOKENS:
            fold.append(None if is_priced_otherwise else INPUT_TEXT)
        else:
            fold.append(OUTPUT_TEXT if meter in _OUTPUT_TOKENS else meter)
    return tuple(fold)


def tokens_within(counts: Mapping[str, int]) -> int:
    """What a budget of tokens sees of some counts."""
    return _sum_of(counts, TOKEN_METERS)


def _sum_of(counts: Mapping[str, int], meters: frozenset[str]) -> int:
    total = 0
    for meter, count in counts.items():
        if meter in meters:
            total += count
    return total


def text_usage(*, input_tokens: int, output_tokens: int) -> Usage:
    """The usage of a plain text answer."""
    counts = {INPUT_TEXT: input_tokens, OUTPUT_TEXT: output_tokens}
    return Usage({meter: count for meter, count in counts.items() if count})
