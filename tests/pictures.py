"""Pictures for tests: shapes drawn by Pillow, and headers that promise more than there is."""

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageDraw


def draw(shape: str, *, kind: str = "PNG", colour: str = "red") -> bytes:
    """A shape on white, 64 pixels each way."""
    picture = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(picture)
    if shape == "square":
        pen.rectangle((14, 14, 50, 50), fill=colour)
    elif shape == "disc":
        pen.ellipse((12, 12, 52, 52), fill=colour)
    else:
        pen.polygon([(32, 12), (52, 50), (12, 50)], fill=colour)
    written = io.BytesIO()
    picture.save(written, kind)
    return written.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, and has no pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + check


def part(content: bytes, *, kind: str = "png") -> dict[str, Any]:
    """A picture as an entry of a request."""
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
