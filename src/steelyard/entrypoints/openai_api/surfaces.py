"""The doors of the gateway: which path takes which work, and how its errors are told."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from steelyard.entrypoints.anthropic_api.error_answer import AnthropicErrors
from steelyard.entrypoints.openai_api.error_shape import ErrorShape, OpenAIErrors, ResponsesErrors
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.workloads.asked import Asked, read_fields
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.gateway.workloads.classification import parse_classification
from steelyard.gateway.workloads.completion import parse_completion
from steelyard.gateway.workloads.embedding import parse_embedding
from steelyard.gateway.workloads.generate import parse_generate
from steelyard.gateway.workloads.image import parse_image
from steelyard.gateway.workloads.messages import parse_countable_messages, parse_messages
from steelyard.gateway.workloads.moderation import parse_moderation
from steelyard.gateway.workloads.rerank import parse_rerank
from steelyard.gateway.workloads.responses import parse_response
from steelyard.gateway.workloads.speech import parse_speech
from steelyard.gateway.workloads.transcription import parse_transcription

Parse = Callable[[bytes], Asked]
ParseForm = Callable[[bytes, str | None], Asked]
OPENAI: Final = OpenAIErrors()
ANTHROPIC: Final = AnthropicErrors()
ENGINE_PATH: Final = re.compile(r"/v1/engines/([^/]+)/completions")


@dataclass(frozen=True, slots=True)
class Surface:
    """A path that takes work as JSON."""

    parse: Parse
    errors: ErrorShape = OPENAI


@dataclass(frozen=True, slots=True)
class FormSurface:
    """A path that takes work as a form with a file; the content type tells the parts apart."""

    parse: ParseForm
    errors: ErrorShape = OPENAI


def path_and_model(path: str) -> tuple[str, str | None]:
    """The path of a surface; Copilot's editors name the model in theirs."""
    if not path.startswith("/v1/engines/"):
        return path, None
    match = ENGINE_PATH.fullmatch(path)
    return ("/v1/completions", match[1]) if match else (path, None)


def parse_countable(body: bytes) -> Asked:
    """A prompt in any of OpenAI's shapes, to be counted and not answered."""
    fields = read_fields(body)
    for name, parse in COUNTABLE.items():
        if name in fields:
            return parse(body)
    raise InvalidRequest(f"give {', '.join(COUNTABLE)}: the prompt that is to be counted")


COUNTABLE: Final[Mapping[str, Parse]] = {
    "messages": parse_chat,
    "prompt": parse_completion,
    "input": parse_response,
}
SERVED: Final[Mapping[str, Surface | FormSurface]] = {
    "/v1/chat/completions": Surface(parse_chat),
    "/v1/completions": Surface(parse_completion),
    "/v1/embeddings": Surface(parse_embedding),
    "/v1/classifications": Surface(parse_classification),
    "/v1/moderations": Surface(parse_moderation),
    "/v1/rerank": Surface(parse_rerank),
    "/v1/responses": Surface(parse_response, ResponsesErrors()),
    "/v1/messages": Surface(parse_messages, ANTHROPIC),
    "/v1/images/generations": Surface(parse_image),
    "/v1/audio/transcriptions": FormSurface(parse_transcription),
    "/v1/audio/speech": Surface(parse_speech),
    "/generate": Surface(parse_generate),
}
COUNTED: Final[Mapping[str, Surface]] = {
    "/v1/tokenize": Surface(parse_countable),
    "/v1/messages/count_tokens": Surface(parse_countable_messages, ANTHROPIC),
}
