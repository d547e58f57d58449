"""What is read from the answer to a part of a document."""

from typing import Any

import msgspec

from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.whole_client import WholeClient


def usage_of(client: WholeClient) -> dict[str, Any]:
    """The usage block with its price; raises UpstreamFailed where the upstream refused."""
    if client.body is None:
        status = client.refused.status if client.refused else "nothing"
        raise UpstreamFailed(f"the model's server answered a part with {status}")
    return msgspec.json.decode(client.body)["usage"]


def text_of(body: bytes) -> str:
    """What a whole chat answer says."""
    try:
        return msgspec.json.decode(body)["choices"][0]["message"]["content"] or ""
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise UpstreamFailed("the model's server sent an answer without text") from error
