"""The client that asks for a part of a document: it stays until the answer is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec

from steelyard.errors import Failure
from steelyard.gateway.relay import UpstreamRefused
from steelyard.gateway.upstreams.base import UpstreamFailed


@dataclass(slots=True)
class PartClient:
    """Implements AnsweringClient for an answer that is taken whole."""

    document: dict[str, Any] | None = None
    refused: UpstreamRefused | None = None

    async def left(self) -> None:
        await anyio.sleep_forever()

    async def start_stream(self, headers: dict[str, str]) -> None:
        raise NotImplementedError("parts are answered whole")

    async def send(self, event: bytes) -> None:
        raise NotImplementedError("parts are answered whole")

    async def fail_stream(self, failure: Failure) -> None:
        raise failure

    async def answer(self, body: bytes, headers: Mapping[str, str]) -> None:
        del headers
        self.document = msgspec.json.decode(body)

    async def answer_from_upstream(
        self, refused: UpstreamRefused, headers: Mapping[str, str]
    ) -> None:
        del headers
        self.refused = refused

    def usage(self) -> dict[str, Any]:
        """The usage block with its price; raises UpstreamFailed where the upstream refused."""
        if self.document is None:
            status = self.refused.answer.status if self.refused else "nothing"
            raise UpstreamFailed(f"the model's server answered a part with {status}")
        return self.document["usage"]


def text_of(body: bytes) -> str:
    """What a whole chat answer says."""
    try:
        return msgspec.json.decode(body)["choices"][0]["message"]["content"] or ""
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise UpstreamFailed("the model's server sent an answer without text") from error
