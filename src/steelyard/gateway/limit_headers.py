"""What an answer says of the limits over it, in the words that OpenAI's and Anthropic's clients
know."""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from steelyard.access.rate_limit import Allowances
from steelyard.timestamp import write_timestamp

# Where Anthropic's clients ask.
MESSAGES_ENDPOINT: Final = "/v1/messages"


def limit_headers(allowances: Allowances) -> dict[str, str]:
    """Limit, remainder and reset of requests and tokens, where there is a limit."""
    headers: dict[str, str] = {}
    if (requests := allowances.requests) is not None:
        headers["x-ratelimit-limit-requests"] = str(requests.limit)
        headers["x-ratelimit-remaining-requests"] = str(requests.remaining)
        headers["x-ratelimit-reset-requests"] = write_wait(requests.reset_s)
    if (tokens := allowances.tokens) is not None:
        headers["x-ratelimit-limit-tokens"] = str(tokens.limit)
        headers["x-ratelimit-remaining-tokens"] = str(tokens.remaining)
        headers["x-ratelimit-reset-tokens"] = write_wait(tokens.reset_s)
    return headers


def anthropic_limit_headers(allowances: Allowances, *, at: datetime) -> dict[str, str]:
    """The same as Anthropic says it, with the moment of the reset
    (https://docs.claude.com/en/api/rate-limits)."""
    headers: dict[str, str] = {}
    for name, allowance in (("requests", allowances.requests), ("tokens", allowances.tokens)):
        if allowance is not None:
            reset_at = at + timedelta(seconds=allowance.reset_s)
            headers[f"anthropic-ratelimit-{name}-limit"] = str(allowance.limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(allowance.remaining)
            headers[f"anthropic-ratelimit-{name}-reset"] = write_timestamp(reset_at)
    return headers


@lru_cache(maxsize=1024)
def write_wait(seconds: float) -> str:
    """A time to wait as OpenAI writes it: 250ms, 6.5s, 1m0.5s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
