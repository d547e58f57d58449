"""What our engine's request log says of requests, as usage blocks that it would have sent."""

from typing import Literal

import msgspec

from steelyard.gateway.upstreams.base import LoggedAttempt, LoggedAttempts, UpstreamFailed
from steelyard.metering.usage_event import CountSource


class _LoggedAnswer(msgspec.Struct, gc=False):
    cached_tokens: int = 0
    engine_us: int = 0
    device_us: int = 0
    device: Literal["gpu", "cpu"] | None = None


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int


class _LoggedTime(msgspec.Struct, gc=False):
    engine_us: int
    device_us: int
    device: Literal["gpu", "cpu"]


class _LoggedUsage(msgspec.Struct, gc=False, omit_defaults=True):
    """The usage block that the engine would have sent."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens
    engine: _LoggedTime | None = None


class _Logged(msgspec.Struct, gc=False):
    """What the engine's request log says of a request."""

    request_id: str
    state: Literal["running", "ended", "lost"]
    prompt_tokens: int
    completion_tokens: int
    answers: list[_LoggedAnswer] = []

    @property
    def is_told(self) -> bool:
        """Not of one that is at work, nor of one that was lost with the engine itself before
        anything of it was counted."""
        return self.state != "running" and self.prompt_tokens > 0

    def as_usage(self) -> _LoggedUsage:
        """The same as a usage block; answers to one prompt share what was cached of it."""
        cached = engine_us = device_us = 0
        device: Literal["gpu", "cpu"] | None = None
        for answer in self.answers:
            cached = max(cached, answer.cached_tokens)
            engine_us += answer.engine_us
            device_us += answer.device_us
            device = answer.device or device
        return _LoggedUsage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            _CachedTokens(min(cached, self.prompt_tokens)),
            _LoggedTime(engine_us, device_us, device) if device else None,
        )


class _LoggedRequests(msgspec.Struct, gc=False):
    requests: list[_Logged]


_encoder = msgspec.json.Encoder()
_logged_decoder = msgspec.json.Decoder(_LoggedRequests)


def read_logged_requests(
    body: bytes, *, upstream: str, count_source: CountSource
) -> LoggedAttempts:
    """What is known of each request in a part of the log; raises UpstreamFailed."""
    try:
        logged = _logged_decoder.decode(body).requests
    except msgspec.DecodeError as error:
        raise UpstreamFailed(f"{upstream} tells of requests in a way we cannot read") from error
    return LoggedAttempts(
        {
            one.request_id: LoggedAttempt(_encoder.encode(one.as_usage()), count_source)
            for one in logged
            if one.is_told
        },
        [one.request_id for one in logged if one.state == "running"],
    )
