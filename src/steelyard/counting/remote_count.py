"""Asks a model's server how many tokens a text has: by its tokenize call, or by a request's usage."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from steelyard.counting.proof import RemoteCount
from steelyard.errors import Failure

How = Literal["tokenize", "completion", "chat"]
T = TypeVar("T")


class RemoteCountFailed(Failure):
    """The model's server does not say how many tokens a text has."""

    code = "remote_count_failed"


class _Tokenized(msgspec.Struct):
    count: int
    tokens: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Answered(msgspec.Struct):
    usage: _Usage


@dataclass(frozen=True, slots=True)
class RemoteCounter:
    """One model of one server. `secret` is what it wants to see, where it wants to see one.

    `tokenize` costs nothing; `completion` and `chat` ask for one token of answer and read the usage.
    """

    url: str
    model: str
    how: How
    secret: str | None = None
    timeout_s: float = 60.0

    def __call__(self, text: str) -> RemoteCount:
        """Raises RemoteCountFailed."""
        match self.how:
            case "tokenize":
                said = self._post("/tokenize", {"prompt": text}, _Tokenized)
                return RemoteCount(said.count, said.tokens)
            case "completion":
                body: dict[str, Any] = {"prompt": text, "max_tokens": 1}
                answered = self._post("/v1/completions", body, _Answered)
            case "chat":
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
                answered = self._post("/v1/chat/completions", body, _Answered)
        return RemoteCount(answered.usage.prompt_tokens)

    def _post(self, path: str, body: Mapping[str, Any], kind: type[T]) -> T:
        headers = {"Content-Type": "application/json"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        request = urllib.request.Request(
            self.url.rstrip("/") + path,
            data=json.dumps({**body, "model": self.model}).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return msgspec.json.decode(response.read(), type=kind)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace")
            raise RemoteCountFailed(f"{self.url}{path} answers {error.code}: {said}") from error
        except msgspec.DecodeError as error:
            raise RemoteCountFailed(f"{self.url}{path} does not say a count: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RemoteCountFailed(f"{self.url}{path} cannot be asked: {error}") from error
