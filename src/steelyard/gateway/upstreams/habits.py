"""What sets one kind of server apart from the next: which paths it has, and what it puts up with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
CLASSIFICATIONS: Final = "/v1/classifications"
MODERATIONS: Final = "/v1/moderations"
RERANK: Final = "/v1/rerank"
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
IMAGES: Final = "/v1/images/generations"
SPEECH: Final = "/v1/audio/speech"
PATHS: Final = frozenset(
    {
        CHAT,
        COMPLETIONS,
        EMBEDDINGS,
        RESPONSES,
        MESSAGES,
        CLASSIFICATIONS,
        MODERATIONS,
        RERANK,
        TRANSCRIPTIONS,
        IMAGES,
        SPEECH,
    }
)


@dataclass(frozen=True, slots=True)
class Habits:
    """How a kind of server is spoken to.

    `limit_fields` names the field that limits an answer, by path, where it is not the usual one.
    `has_running_usage` says that it can report usage after each chunk of a stream.
    `takes_prompt_bound` says that it refuses a prompt above `max_prompt_tokens`, and keeps to the
    bounds of other work.
    `knows_tenants` says that it takes turns between callers (`X-Fairness-Key`), and keeps the cached
    prompts of one from another (`cache_salt`).
    `has_request_log` says that it can tell what became of a request.
    `counts_at` says where it counts a prompt: at `/tokenize`, as Anthropic does, or nowhere.
    `has_deployment_paths` says that the model is a part of the path.
    """

    paths: frozenset[str] = frozenset({CHAT, COMPLETIONS})
    has_running_usage: bool = False
    limit_fields: Mapping[str, str] = field(default_factory=dict[str, str])
    takes_prompt_bound: bool = False
    knows_tenants: bool = False
    has_request_log: bool = False
    counts_at: Literal["tokenize", "messages"] | None = None
    has_deployment_paths: bool = False

    def path_for(self, path: str, *, model: str) -> str:
        """Where a path of OpenAI's is found on this kind of server."""
        if self.has_deployment_paths:
            return f"/openai/deployments/{model}{path.removeprefix('/v1')}"
        return path


ENGINE: Final = Habits(
    has_running_usage=True,
    takes_prompt_bound=True,
    knows_tenants=True,
    has_request_log=True,
    counts_at="tokenize",
)
