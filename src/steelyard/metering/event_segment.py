"""An event segment: the bytes of a batch of events, compressed together, exactly as delivered."""

from collections.abc import Sequence

import zstandard

# Fast, and still a twelfth of the size: events of a batch repeat each other.
LEVEL = 1


def pack_bodies(bodies: Sequence[bytes]) -> bytes:
    """One line with the lengths, then the bodies one after the other; compressed."""
    lengths = ",".join(str(len(body)) for body in bodies)
    return zstandard.ZstdCompressor(level=LEVEL).compress(
        lengths.encode() + b"\n" + b"".join(bodies)
    )


def unpack_bodies(segment: bytes) -> list[bytes]:
    """The bodies that `pack_bodies` packed, in their order."""
    lengths, _, rest = zstandard.ZstdDecompressor().decompress(segment).partition(b"\n")
    bodies: list[bytes] = []
    start = 0
    for length in (int(text) for text in lengths.split(b",")):
        bodies.append(rest[start : start + length])
        start += length
    return bodies
