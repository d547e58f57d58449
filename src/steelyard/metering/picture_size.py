"""How large a picture is, by its header: PNG (RFC 2083) and JPEG (ITU-T T.81). Nothing is decoded."""

import struct
from dataclasses import dataclass
from typing import Final

from steelyard.errors import Refusal

_PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_JPEG: Final = b"\xff\xd8\xff"
# Frames, whichever way they are coded; C4, C8 and CC are something else.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureUnsupported(Refusal):
    """The file is no picture that is understood: PNG or JPEG."""

    code = "picture_unsupported"


@dataclass(frozen=True, slots=True)
class PictureSize:
    """Pixels across and down."""

    width: int
    height: int


def read_picture_size(content: bytes) -> PictureSize:
    """The size that a picture's header tells; raises PictureUnsupported."""
    if content.startswith(_PNG) and len(content) >= 24:
        width, height = struct.unpack_from(">II", content, 16)
        return PictureSize(width, height)
    if content.startswith(_JPEG):
        return _read_jpeg(content)
    raise PictureUnsupported


def _read_jpeg(content: bytes) -> PictureSize:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return PictureSize(width, height)
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise PictureUnsupported("the picture ends before its size is told")
