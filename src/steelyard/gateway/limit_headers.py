"""What an answer says of the limits over it, in the words that OpenAI's clients know."""

from functools import lru_cache

from steelyard.access.rate_limit import Allowances


def limit_headers(allowances: Allowances) -> dict[str, str]:
    """Limit, remainder and reset of requests and tokens, where there is a limit."""
    headers: dict[str, str] = {}
    for name, allowance in (("requests", allowances.requests), ("tokens", allowances.tokens)):
        if allowance is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
            headers[f"x-ratelimit-reset-{name}"] = write_wait(allowance.reset_s)
    return headers


@lru_cache(maxsize=1024)
def write_wait(seconds: float) -> str:
    """A time to wait as OpenAI writes it: 250ms, 6.5s, 1m0.5s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
