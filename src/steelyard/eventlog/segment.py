"""The bytes of an outbox segment: one batch for each group commit, found whole or not at all.

A batch is a header, the lengths of its records, the events, and the attempts that were opened. The
checksum covers all of it. A batch is written only after the one before it was durable, so a bad
batch at the end was torn by a crash and is cut off, and a bad batch with a good one behind it is
damage that nobody may overlook.
"""

import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from steelyard.eventlog.log import EventLogUnavailable

MAGIC: Final = b"SYB1"
# Magic, checksum, first position, events, opened attempts, bytes of each of the two.
_HEADER: Final = struct.Struct("<4sIQIIII")
_CHECKED_FROM: Final = 8
HEADER_BYTES: Final = _HEADER.size
_SUFFIX: Final = ".segment"
_NUMBER_DIGITS: Final = 10
_POSITION_DIGITS: Final = 20


class OutboxDamaged(EventLogUnavailable):
    """What the outbox had safely written is not there any more."""

    code = "outbox_damaged"


@dataclass(frozen=True, slots=True)
class Batch:
    """One group commit, read back; the first event in it has this position."""

    first_position: int
    events: list[bytes]
    opened: list[bytes]
    begins: int
    ends: int

    @property
    def next_position(self) -> int:
        return self.first_position + len(self.events)


def pack_batch(first_position: int, events: Sequence[bytes], opened: Sequence[bytes]) -> bytearray:
    """The bytes of a batch; they go to the disk in one write."""
    lengths = array("I", map(len, events))
    lengths.extend(map(len, opened))
    counts = len(events), len(opened), sum(map(len, events)), sum(map(len, opened))
    content = bytearray().join((bytes(HEADER_BYTES), lengths.tobytes(), *events, *opened))
    _HEADER.pack_into(content, 0, MAGIC, 0, first_position, *counts)
    checksum = zlib.crc32(memoryview(content)[_CHECKED_FROM:])
    _HEADER.pack_into(content, 0, MAGIC, checksum, first_position, *counts)
    return content


def read_batches(content: memoryview, *, start: int = 0) -> Iterator[Batch]:
    """The good batches from an offset on; it ends at the first that is not."""
    while batch := unpack_batch(content, start):
        yield batch
        start = batch.ends


def unpack_batch(content: memoryview, begins: int) -> Batch | None:
    """The batch at an offset, or None if there is no whole one."""
    if begins + HEADER_BYTES > len(content):
        return None
    header = _HEADER.unpack_from(content, begins)
    magic, checksum, first_position, event_count, opened_count, events_bytes, opened_bytes = header
    lengths_at = begins + HEADER_BYTES
    events_at = lengths_at + 4 * (event_count + opened_count)
    opened_at = events_at + events_bytes
    ends = opened_at + opened_bytes
    if magic != MAGIC or ends > len(content):
        return None
    if zlib.crc32(content[begins + _CHECKED_FROM : ends]) != checksum:
        return None
    lengths = array("I", bytes(content[lengths_at:events_at]))
    return Batch(
        first_position,
        _slices(content, events_at, lengths[:event_count]),
        _slices(content, opened_at, lengths[event_count:]),
        begins,
        ends,
    )


def read_header(header: bytes) -> tuple[int, int] | None:
    """Of a batch that was read as good before: the position after it, and its length in bytes."""
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        return None
    _, _, first, event_count, opened_count, events_bytes, opened_bytes = _HEADER.unpack(header)
    lengths_bytes = 4 * (event_count + opened_count)
    return first + event_count, HEADER_BYTES + lengths_bytes + events_bytes + opened_bytes


def _slices(content: memoryview, start: int, lengths: "array[int]") -> list[bytes]:
    ends = list(accumulate(lengths, initial=start))
    whole = bytes(content[start : ends[-1]])
    return [whole[begin - start : end - start] for begin, end in pairwise(ends)]


def check_torn(content: memoryview, end: int, *, path: Path) -> None:
    """Raise OutboxDamaged if a good batch comes after the end of the good ones: then what stands
    there was durable once, and is bad now."""
    rest = bytes(content[end:])
    found = rest.find(MAGIC, 1)
    while found >= 0:
        if unpack_batch(content, end + found):
            raise OutboxDamaged(
                f"{path} has a bad batch at byte {end} and a good one after it, so what was safely "
                "written has been changed; restore the file, or move it away and account for it"
            )
        found = rest.find(MAGIC, found + 1)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """Segments are numbered in the order of their making; each says where its events begin.

    What an earlier one has at that position or after it was never durable, and does not count.
    """

    number: int
    first_position: int

    def path_in(self, folder: Path) -> Path:
        name = f"{self.number:0{_NUMBER_DIGITS}d}-{self.first_position:0{_POSITION_DIGITS}d}"
        return folder / f"{name}{_SUFFIX}"


def segment_names(folder: Path) -> list[SegmentName]:
    """The segments of an outbox, in order."""
    stems = (path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))
    parts = (stem.partition("-") for stem in stems)
    return sorted(SegmentName(int(number), int(position)) for number, _, position in parts)
