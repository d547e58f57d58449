"""Translates an upstream's usage block into our disjoint meters, once, at the edge.

OpenAI's shape is inclusive: prompt_tokens contains the cached ones and completion_tokens contains
the reasoning ones (https://platform.openai.com/docs/api-reference/chat/object).
"""

import msgspec

from steelyard.errors import Failure
from steelyard.metering.usage import (
    INPUT_TEXT,
    INPUT_TEXT_CACHE_READ,
    OUTPUT_TEXT,
    OUTPUT_TEXT_REASONING,
    Usage,
)


class UpstreamUsageMalformed(Failure):
    """The upstream's usage block contradicts itself, so it cannot be billed."""

    code = "upstream_usage_malformed"


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class OpenAIUsage(msgspec.Struct):
    """The usage block of OpenAI-compatible servers; counts in tokens."""

    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


def translate_openai_usage(block: OpenAIUsage) -> Usage:
    """Split inclusive totals into disjoint meters; a negative part is refused."""
    prompt, completion = block.prompt_tokens_details, block.completion_tokens_details
    cached = (prompt.cached_tokens or 0) if prompt else 0
    reasoning = (completion.reasoning_tokens or 0) if completion else 0
    counts = {
        INPUT_TEXT: block.prompt_tokens - cached,
        INPUT_TEXT_CACHE_READ: cached,
        OUTPUT_TEXT: block.completion_tokens - reasoning,
        OUTPUT_TEXT_REASONING: reasoning,
    }
    if min(counts.values()) < 0:
        raise UpstreamUsageMalformed(f"usage with a negative part: {counts}")
    return Usage({meter: count for meter, count in counts.items() if count})
