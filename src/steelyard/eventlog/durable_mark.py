"""The mark that tells readers how far an outbox is durable.

It is a small file that the writer changes after each sync. It is not synced itself: readers of the
same machine see it at once, and after a loss of power the writer's next start sets it anew.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

_MARK: Final = struct.Struct("<QQI")
_UNCHECKED: Final = struct.Struct("<QQ")
FILE_NAME: Final = "durable"


class Durable(NamedTuple):
    """So many bytes of this segment, and the whole of every one before it, are durable."""

    segment_number: int
    length: int


NOTHING: Final = Durable(0, 0)


class DurableMark:
    """The writer's side."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(folder / FILE_NAME, flags, 0o640)

    def set(self, durable: Durable) -> None:
        checksum = zlib.crc32(_UNCHECKED.pack(*durable))
        os.pwrite(self._descriptor, _MARK.pack(*durable, checksum), 0)

    def close(self) -> None:
        os.close(self._descriptor)


def read_mark(folder: Path) -> Durable:
    """What is durable now; a mark that is being written is read again."""
    try:
        content = (folder / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return NOTHING
    if len(content) != _MARK.size:
        return NOTHING
    segment_number, length, checksum = _MARK.unpack(content)
    if zlib.crc32(content[: _UNCHECKED.size]) != checksum:
        return NOTHING
    return Durable(segment_number, length)
