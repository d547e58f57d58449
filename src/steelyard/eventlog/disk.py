"""The disk under an outbox: the machine's own, and one that fails when it is told to."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class SegmentFile(Protocol):
    """A file that grows at its end. Every method raises OSError when the disk fails."""

    def append(self, content: memoryview) -> None:
        """Return when it survives the loss of power, as all before it does."""
        ...

    def cut(self, length: int) -> None:
        """Drop what stands after so many bytes."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """Where segments are made."""

    def create(self, path: Path) -> SegmentFile:
        """A new file, whose name is durable too; raises OSError."""
        ...


class LocalFile:
    """Implements SegmentFile on a file of this machine.

    Each write is through to the disk: one call, in which the interpreter's lock is given up once.
    """

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_DSYNC
        flags |= os.O_TRUNC if is_new else 0
        self._descriptor = os.open(path, flags, 0o640)

    def append(self, content: memoryview) -> None:
        while content:
            content = content[os.write(self._descriptor, content) :]

    def cut(self, length: int) -> None:
        os.ftruncate(self._descriptor, length)

    def close(self) -> None:
        os.close(self._descriptor)


class LocalDisk:
    """Implements Disk."""

    def create(self, path: Path) -> SegmentFile:
        created = LocalFile(path)
        sync_folder(path.parent)
        return created


@dataclass(slots=True)
class FailingDisk:
    """Implements Disk on another one; fails as it is told.

    `room` is how many bytes still fit: a write beyond it is torn in the middle, as on a full disk.
    """

    disk: Disk = field(default_factory=LocalDisk)
    room: int | None = None
    fails_to_sync: bool = False

    def create(self, path: Path) -> SegmentFile:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        return _FailingFile(self, self.disk.create(path))


@dataclass(slots=True)
class _FailingFile:
    owner: FailingDisk
    file: SegmentFile

    def append(self, content: memoryview) -> None:
        room = self.owner.room
        if room is not None and len(content) > room:
            self.file.append(content[:room])
            self.owner.room = 0
            raise OSError(28, "No space left on device")
        if room is not None:
            self.owner.room = room - len(content)
        self.file.append(content)
        if self.owner.fails_to_sync:
            # It is written, and whether it is on the disk nobody knows.
            raise OSError(5, "Input/output error")

    def cut(self, length: int) -> None:
        self.file.cut(length)

    def close(self) -> None:
        self.file.close()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
