"""What an operator says about upstreams and models: plain values, checked one by one.

How they are written in a file, `docs/reference/configuration.md` says. What belongs together across
tables, `app/configuration.py` checks.
"""

from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
UpstreamKind = Literal[
    "engine",
    "vllm",
    "sglang",
    "llama.cpp",
    "ollama",
    "openai",
    "azure-openai",
    "deepseek",
    "qwen",
    "anthropic",
    "openai-compatible",
]
Choice = Literal["weighted", "least_busy"]


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class TimeoutRules(_Rules, frozen=True):
    """How long each phase of an answer may take; what is not given comes from a wider scope."""

    connect_s: Seconds | None = None
    first_token_s: Seconds | None = None
    between_tokens_s: Seconds | None = None
    total_s: Seconds | None = None


class UpstreamRules(_Rules, frozen=True):
    """A server that answers; its key is named here and never written here."""

    kind: UpstreamKind
    url: str | None = None
    key_env: str | None = None
    key_file: str | None = None
    api_version: str | None = None
    paths: tuple[str, ...] | None = None
    timeouts: TimeoutRules = TimeoutRules()
    connections_max: Count | None = None


class DeploymentRules(_Rules, frozen=True):
    """A model on one upstream, under the name that it has there."""

    upstream: Name
    model: Name | None = None
    weight: Count = 1


class TokenizerRules(_Rules, frozen=True):
    """What bounds the tokens of a prompt where the upstream does not say; generous unless given."""

    byte_level: bool = True
    bytes_per_token_max: Count = 256
    template_tokens_base: Annotated[int, msgspec.Meta(ge=0)] = 32
    template_tokens_per_message: Annotated[int, msgspec.Meta(ge=0)] = 16
    special_tokens_added: Annotated[int, msgspec.Meta(ge=0)] = 1


class ModelRules(_Rules, frozen=True):
    """A model as callers know it, and as it is priced."""

    deployments: Annotated[list[DeploymentRules], msgspec.Meta(min_length=1)]
    aliases: list[Name] = []
    choice: Choice = "weighted"
    fallbacks: list[Name] = []
    context_tokens: Count | None = None
    tokenizer: TokenizerRules | None = None


class RetryRules(_Rules, frozen=True):
    """How often a request is tried again; a model's retries are a share of its requests."""

    attempts_max: Count = 2
    budget_percent: Percent = 20.0
    budget_burst: Count = 10
    backoff_first_s: Seconds = 0.1
    backoff_max_s: Seconds = 2.0
    within_s: Seconds = 60.0


class BreakerRules(_Rules, frozen=True):
    """After how many failures in a row a deployment rests, and for how long; 0 is never."""

    failures: Annotated[int, msgspec.Meta(ge=0)] = 5
    open_s: Seconds = 10.0
    open_max_s: Seconds = 120.0


class HealthRules(_Rules, frozen=True):
    """How often each upstream is asked which models it has."""

    every_s: Seconds = 10.0


class RoutingTable(_Rules, frozen=True):
    """The table `[routing]`: what holds for all models."""

    timeouts: TimeoutRules = TimeoutRules()
    retries: RetryRules = RetryRules()
    breaker: BreakerRules = BreakerRules()
    health: HealthRules = HealthRules()


class RoutingRules(_Rules, frozen=True):
    """Everything that a file says about upstreams and models."""

    upstreams: dict[str, UpstreamRules]
    models: dict[str, ModelRules] = {}
    routing: RoutingTable = RoutingTable()


# Without a file each request is tried once, and nothing rests.
NO_RETRIES = RetryRules(attempts_max=1)
NO_BREAKER = BreakerRules(failures=0)
