"""What every answer of the engine needs of ASGI: its events and parts, and a client that leaves."""

from typing import Any, Final

import anyio
import msgspec
from starlette.types import Receive, Send

DONE: Final = b"data: [DONE]\n\n"
# Proxies would otherwise collect a stream and deliver it in one piece.
STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event_bytes(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


async def send_part(send: Send, part: bytes) -> None:
    """Send a piece of the answer, which is not its last; nothing where there is nothing in it."""
    if part:
        await send({"type": "http.response.body", "body": part, "more_body": True})


async def cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    """Wait for the client to leave, then cancel."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
