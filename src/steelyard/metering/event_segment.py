"""An event segment: the bytes of a batch of events, compressed together, exactly as delivered."""

from collections.abc import Sequence
from itertools import accumulate

import zstandard

from steelyard.errors import Failure

# Fast, and still a twelfth of the size: events of a batch repeat each other.
LEVEL = 1


class SegmentUnreadable(Failure):
    """A segment of events is damaged: it is not what was packed."""

    code = "segment_unreadable"


def pack_bodies(bodies: Sequence[bytes]) -> bytes:
    """One line with the lengths, then the bodies one after the other; compressed."""
    lengths = ",".join(map(str, map(len, bodies))).encode()
    return zstandard.ZstdCompressor(level=LEVEL).compress(b"".join([lengths, b"\n", *bodies]))


def unpack_bodies(segment: bytes) -> list[bytes]:
    """The bodies that `pack_bodies` packed, in their order; raises SegmentUnreadable."""
    try:
        lengths, _, rest = zstandard.ZstdDecompressor().decompress(segment).partition(b"\n")
        ends = list(accumulate(int(text) for text in lengths.split(b",")))
    except (zstandard.ZstdError, ValueError) as error:
        raise SegmentUnreadable(f"a segment of {len(segment)} bytes: {error}") from error
    return [rest[start:end] for start, end in zip([0, *ends], ends, strict=False)]
