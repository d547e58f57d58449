"""The kinds of server that answer, and what is known of each without asking it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import urlsplit

from steelyard.gateway.routing.rules import UpstreamKind
from steelyard.gateway.upstreams.habits import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    ENGINE,
    MESSAGES,
    RESPONSES,
    Habits,
)
from steelyard.metering.usage_event import CountSource

ANTHROPIC_VERSION: Final = "2023-06-01"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server.

    `url` is where its maker runs it. `api_path` follows a URL without a path, and any that is not
    hosted; the URL of a hosted one may have a path of its own, as OpenAI's clients have it.
    `tells_context` says that it tells how long a model's context is.
    """

    habits: Habits
    url: str | None = None
    count_source: CountSource = "provider"
    is_hosted: bool = False
    tells_context: bool = False
    authorization: Literal["bearer", "api-key", "x-api-key"] = "bearer"
    api_path: str = "/v1"

    def headers(self, secret: str | None) -> dict[str, str]:
        """What a request shows, to be let in."""
        match self.authorization:
            case "x-api-key":
                headers = {"anthropic-version": ANTHROPIC_VERSION}
                return {**headers, "x-api-key": secret} if secret else headers
            case "api-key":
                return {"api-key": secret} if secret else {}
            case "bearer":
                return {"Authorization": f"Bearer {secret}"} if secret else {}

    def api_url(self, url: str) -> str:
        """What stands in place of `/v1` in front of each path."""
        url = url.rstrip("/")
        has_path = bool(urlsplit(url).path)
        if url.endswith(self.api_path) or (self.is_hosted and has_path):
            return url
        return url + self.api_path


_TEXT: Final = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
_SERVER: Final = Habits(paths=_TEXT)
# OpenAI's newer models take this name alone, and all of its models take it.
_LIMITS: Final[Mapping[str, str]] = {CHAT: "max_completion_tokens"}

KINDS: Final[Mapping[UpstreamKind, Kind]] = {
    "engine": Kind(ENGINE, count_source="engine", tells_context=True),
    "vllm": Kind(
        Habits(paths=_TEXT, has_running_usage=True, counts_at="tokenize"), tells_context=True
    ),
    "sglang": Kind(Habits(paths=_TEXT, has_running_usage=True), tells_context=True),
    "llama.cpp": Kind(_SERVER),
    "ollama": Kind(_SERVER, url="http://127.0.0.1:11434"),
    "openai": Kind(
        Habits(paths=_TEXT | {RESPONSES}, limit_fields=_LIMITS),
        url="https://api.openai.com/v1",
        is_hosted=True,
    ),
    "azure-openai": Kind(
        Habits(paths=_TEXT, limit_fields=_LIMITS),
        is_hosted=True,
        authorization="api-key",
        api_path="/openai/v1",
    ),
    "deepseek": Kind(
        Habits(paths=frozenset({CHAT})), url="https://api.deepseek.com/v1", is_hosted=True
    ),
    "qwen": Kind(
        Habits(paths=frozenset({CHAT, EMBEDDINGS})),
        url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        is_hosted=True,
    ),
    "anthropic": Kind(
        Habits(paths=frozenset({MESSAGES}), counts_at="messages"),
        url="https://api.anthropic.com/v1",
        is_hosted=True,
        authorization="x-api-key",
    ),
    "openai-compatible": Kind(_SERVER, is_hosted=True),
}


def habits_of(
    kind: UpstreamKind, *, paths: Sequence[str] | None, api_version: str | None
) -> Habits:
    """The habits of one server: its kind's, but for what its operator says."""
    habits = KINDS[kind].habits
    if paths is not None:
        habits = replace(habits, paths=frozenset(paths))
    if kind == "azure-openai" and api_version is not None:
        habits = replace(habits, has_deployment_paths=True)
    return habits
