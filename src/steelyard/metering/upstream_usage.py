"""Translates an upstream's usage block into our disjoint meters, once, at the edge.

OpenAI's blocks are inclusive: prompt_tokens contains the cached ones and completion_tokens the
reasoning ones (https://platform.openai.com/docs/api-reference/chat/object). Anthropic's are
exclusive: input_tokens are those that no cache was involved in
(https://docs.claude.com/en/api/messages). Transcripts have a block of their own, with a type.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from steelyard.errors import Failure
from steelyard.metering.usage import (
    ENGINE_CPU_MICROSECONDS,
    ENGINE_GPU_MICROSECONDS,
    INPUT_AUDIO_SECONDS,
    INPUT_AUDIO_TOKENS,
    INPUT_AUDIO_TOKENS_CACHE_READ,
    INPUT_IMAGE_TOKENS,
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    INPUT_TEXT_CACHE_WRITE,
    INPUT_TEXT_CACHE_WRITE_1H,
    ITEM,
    OUTPUT_AUDIO_CHARACTERS,
    OUTPUT_AUDIO_TOKENS,
    OUTPUT_IMAGE_COUNT,
    OUTPUT_IMAGE_HEIGHT,
    OUTPUT_IMAGE_PIXELS,
    OUTPUT_IMAGE_STEPS,
    OUTPUT_IMAGE_TOKENS,
    OUTPUT_IMAGE_WIDTH,
    OUTPUT_TEXT,
    OUTPUT_TEXT_REASONING,
    OUTPUT_TRANSCRIPT_CHARACTERS,
    OUTPUT_TRANSCRIPT_TOKENS,
    SEARCH,
    Usage,
)


class UpstreamUsageMalformed(Failure):
    """The upstream's usage block contradicts itself, so it cannot be billed."""

    code = "upstream_usage_malformed"


class InputDetails(msgspec.Struct):
    """What a prompt was made of; the last two names are those of other OpenAI-shaped servers."""

    cached_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class EngineShare(msgspec.Struct):
    """What our engine says of the time that a request took: its share of each step it was in."""

    device_us: int
    device: Literal["gpu", "cpu"]


_NOTHING: Final = msgspec.Raw(b"null")


class OpenAIUsage(msgspec.Struct):
    """The usage block of OpenAI-compatible servers; counts in tokens. Without `prompt_tokens` it is
    the block of another shape, of which the rest tells which."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    # DeepSeek's name of the cached tokens.
    prompt_cache_hit_tokens: int | None = None
    # Of work that is counted in items: texts that were classified.
    items: int | None = None
    # Other servers may mean something else by this name.
    engine: msgspec.Raw = _NOTHING


class ResponsesUsage(msgspec.Struct):
    """The same counts as OpenAI's Responses API names them."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class ServerToolUse(msgspec.Struct):
    web_search_requests: int | None = None


class AnthropicUsage(msgspec.Struct):
    """Anthropic's usage block; the counts are disjoint already."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: ServerToolUse | None = None


class TranscriptUsage(msgspec.Struct):
    """What a transcript used, by the length of the sound or by tokens. What stands here beside
    OpenAI's own fields, our engine counts, or the gateway does where an upstream does not."""

    type: Literal["duration", "tokens"]
    seconds: float | None = None
    output_tokens: int | None = None
    transcript_tokens: int | None = None
    transcript_characters: int | None = None


class SpokenUsage(msgspec.Struct):
    """What speaking used."""

    type: Literal["spoken"]
    characters: int = 0


class ImageUsage(msgspec.Struct):
    """What drawing used: pictures that are there, and steps that were taken for them."""

    type: Literal["image"]
    input_tokens: int = 0
    images: int = 0
    steps: int = 0
    width: int = 0
    height: int = 0
    pixels: int = 0


class _Block(OpenAIUsage):
    """A block, and enough of it to tell which it is."""

    type: Any = None
    input_tokens: int | None = None
    total_tokens: int | None = None


_block_decoder = msgspec.json.Decoder(_Block | None)
_responses_decoder = msgspec.json.Decoder(ResponsesUsage)
_engine_decoder = msgspec.json.Decoder(EngineShare)
_NO_TIME: Final[Mapping[str, int]] = MappingProxyType({})
_anthropic_decoder = msgspec.json.Decoder(AnthropicUsage)
_image_decoder = msgspec.json.Decoder(ImageUsage)
_spoken_decoder = msgspec.json.Decoder(SpokenUsage)
_transcript_decoder = msgspec.json.Decoder(TranscriptUsage)


def read_upstream_usage(raw: bytes | msgspec.Raw) -> Usage | None:
    """The usage that a block states, whichever of the shapes it has; None for `null`.

    Raises UpstreamUsageMalformed.
    """
    try:
        block = _block_decoder.decode(raw)
        if block is None:
            return None
        if block.type is not None:
            if block.type in ("duration", "tokens"):
                return translate_transcript_usage(_transcript_decoder.decode(raw))
            if block.type == "image":
                return translate_image_usage(_image_decoder.decode(raw))
            if block.type == "spoken":
                return _usage({OUTPUT_AUDIO_CHARACTERS: _spoken_decoder.decode(raw).characters})
        if block.prompt_tokens is not None:
            return translate_openai_usage(block)
        if block.input_tokens is None and (block.total_tokens, block.items) != (None, None):
            # Of work that writes nothing some servers tell the total alone, or only items.
            total = block.total_tokens or 0
            return translate_openai_usage(OpenAIUsage(total, items=block.items))
        if block.total_tokens is not None:
            return translate_responses_usage(_responses_decoder.decode(raw))
        return translate_anthropic_usage(_anthropic_decoder.decode(raw))
    except msgspec.ValidationError as error:
        raise UpstreamUsageMalformed("the model's server sent a usage we cannot read") from error


def translate_openai_usage(block: OpenAIUsage) -> Usage:
    """Split inclusive totals into disjoint meters; a negative part is refused."""
    details = block.prompt_tokens_details
    cached = details.cached_tokens if details else None
    if cached is None:
        cached = block.prompt_cache_hit_tokens or 0
    return _disjoint(
        block.prompt_tokens or 0,
        block.completion_tokens or 0,
        cached=cached,
        details=details,
        output=block.completion_tokens_details,
        items=block.items or 0,
        engine_time=_engine_time(block.engine),
    )


def translate_responses_usage(block: ResponsesUsage) -> Usage:
    """Split inclusive totals into disjoint meters; a negative part is refused."""
    details = block.input_tokens_details
    return _disjoint(
        block.input_tokens,
        block.output_tokens,
        cached=(details.cached_tokens or 0) if details else 0,
        details=details,
        output=block.output_tokens_details,
    )


def translate_anthropic_usage(block: AnthropicUsage) -> Usage:
    """Name disjoint counts by our meters; a count that says it is a part of more is refused."""
    written = block.cache_creation_input_tokens or 0
    hour = (block.cache_creation.ephemeral_1h_input_tokens or 0) if block.cache_creation else 0
    searches = (block.server_tool_use.web_search_requests or 0) if block.server_tool_use else 0
    return _usage(
        {
            INPUT_TEXT: block.input_tokens or 0,
            INPUT_TEXT_CACHE_READ: block.cache_read_input_tokens or 0,
            INPUT_TEXT_CACHE_WRITE: written - hour,
            INPUT_TEXT_CACHE_WRITE_1H: hour,
            OUTPUT_TEXT: block.output_tokens or 0,
            SEARCH: searches,
        }
    )


def translate_transcript_usage(block: TranscriptUsage) -> Usage:
    """Seconds that have begun count whole; tokens of sound stand for seconds, and are not counted."""
    tokens = block.transcript_tokens
    return _usage(
        {
            INPUT_AUDIO_SECONDS: math.ceil(block.seconds or 0),
            OUTPUT_TRANSCRIPT_TOKENS: (block.output_tokens or 0) if tokens is None else tokens,
            OUTPUT_TRANSCRIPT_CHARACTERS: block.transcript_characters or 0,
        }
    )


def _engine_time(raw: msgspec.Raw) -> Mapping[str, int]:
    """The engine time by its meter; nothing where the block is not our engine's."""
    if raw is _NOTHING:
        return _NO_TIME
    try:
        share = _engine_decoder.decode(raw)
    except msgspec.ValidationError:
        return _NO_TIME
    meter = ENGINE_GPU_MICROSECONDS if share.device == "gpu" else ENGINE_CPU_MICROSECONDS
    return {meter: share.device_us}


def translate_image_usage(block: ImageUsage) -> Usage:
    """The size counts once a step was taken or a picture is there."""
    is_begun = bool(block.steps or block.images)
    return _usage(
        {
            INPUT_TEXT: block.input_tokens,
            OUTPUT_IMAGE_COUNT: block.images,
            OUTPUT_IMAGE_STEPS: block.steps,
            OUTPUT_IMAGE_WIDTH: block.width if is_begun else 0,
            OUTPUT_IMAGE_HEIGHT: block.height if is_begun else 0,
            OUTPUT_IMAGE_PIXELS: block.pixels if is_begun else 0,
        }
    )


def _disjoint(
    prompt: int,
    completion: int,
    *,
    cached: int,
    details: InputDetails | None,
    output: OutputDetails | None,
    items: int = 0,
    engine_time: Mapping[str, int] = _NO_TIME,
) -> Usage:
    counts = _input_counts(prompt, cached, details)
    counts |= _output_counts(completion, output)
    if items:
        counts[ITEM] = items
    if engine_time:
        counts.update(engine_time)
    return _usage(counts)


def _input_counts(prompt: int, cached: int, details: InputDetails | None) -> dict[str, int]:
    if details is None:
        return {INPUT_TEXT: prompt - cached, INPUT_TEXT_CACHE_READ: cached}
    audio, image = details.audio_tokens or 0, details.image_tokens or 0
    written = details.cache_write_tokens or details.cache_creation_tokens or 0
    # Most blocks have nothing of these, and each event of a stream may have a block.
    if not (audio or image or written):
        return {INPUT_TEXT: prompt - cached, INPUT_TEXT_CACHE_READ: cached}
    # Cached tokens and tokens of sound are both parts of the prompt, and may be the same ones:
    # as many as there is no room for otherwise.
    both = min(max(0, cached + audio + image + written - prompt), cached, audio)
    return {
        INPUT_TEXT: prompt - cached - audio - image - written + both,
        INPUT_TEXT_CACHE_READ: cached - both,
        INPUT_TEXT_CACHE_WRITE: written,
        INPUT_AUDIO_TOKENS: audio - both,
        INPUT_AUDIO_TOKENS_CACHE_READ: both,
        INPUT_IMAGE_TOKENS: image,
    }


def _output_counts(completion: int, details: OutputDetails | None) -> dict[str, int]:
    if details is None:
        return {OUTPUT_TEXT: completion}
    reasoning = details.reasoning_tokens or 0
    spoken, drawn = details.audio_tokens or 0, details.image_tokens or 0
    return {
        OUTPUT_TEXT: completion - reasoning - spoken - drawn,
        OUTPUT_TEXT_REASONING: reasoning,
        OUTPUT_AUDIO_TOKENS: spoken,
        OUTPUT_IMAGE_TOKENS: drawn,
    }


def _usage(counts: dict[str, int]) -> Usage:
    if min(counts.values()) < 0:
        raise UpstreamUsageMalformed(f"usage with a negative part: {counts}")
    return Usage({meter: count for meter, count in counts.items() if count})
