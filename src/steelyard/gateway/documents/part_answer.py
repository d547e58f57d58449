"""What is read from the answer to a part of a document."""

from typing import Any

import msgspec

from steelyard.gateway.attempt import RETRIED
from steelyard.gateway.upstreams.base import UpstreamFailed
from steelyard.gateway.whole_client import WholeClient


class PartRefused(UpstreamFailed):
    """The model's server will not take this part, however often it is asked."""

    code = "part_refused"


def usage_of(client: WholeClient) -> dict[str, Any]:
    """The usage block with its price; raises UpstreamFailed where the upstream refused."""
    if client.body is None:
        assert client.refused is not None, "a part was answered or refused"
        status = client.refused.status
        kind = UpstreamFailed if status in RETRIED else PartRefused
        raise kind(f"the model's server answered a part with {status}")
    return msgspec.json.decode(client.body)["usage"]


def text_of(body: bytes) -> str:
    """What a whole chat answer says."""
    try:
        return msgspec.json.decode(body)["choices"][0]["message"]["content"] or ""
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise UpstreamFailed("the model's server sent an answer without text") from error
