"""A disk that tears writes when the power goes, and refuses them when it is full."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steelyard.eventlog.attempt_records import decode_opened
from steelyard.eventlog.disk import LocalFile, SegmentFile
from steelyard.eventlog.durable_mark import FILE_NAME
from steelyard.eventlog.segment import read_batches
from tests.sim.life import Life
from tests.sim.universe import Universe, WallClock

Fate = Literal["torn", "unmarked"]


@dataclass(slots=True)
class FaultyDisk:
    """Implements Disk for one life of a gateway."""

    universe: Universe
    life: Life
    clock: WallClock

    def create(self, path: Path) -> SegmentFile:
        self.check()
        return FaultyFile(self, path)

    def check(self) -> None:
        faults = self.universe.plan.faults
        if self.life.is_disk_full or self.universe.strikes(faults.disk_refuses):
            self.universe.note("disk.refused")
            raise OSError(28, "No space left on the simulated device")

    def fate(self) -> Fate | None:
        """How the process dies in this write, if it does."""
        if not self.universe.strikes(self.universe.plan.faults.disk_tears):
            return None
        return self.universe.chance.choice(("torn", "unmarked"))

    def crash(self, fate: Fate) -> None:
        self.universe.note("power.lost", write=fate)
        self.life.crash_here()


class FaultyFile(LocalFile):
    """Implements SegmentFile on a real file, so that the product's own code reads it again."""

    def __init__(self, disk: FaultyDisk, path: Path) -> None:
        super().__init__(path)
        self._disk = disk
        self._path = path

    def append(self, content: memoryview) -> None:
        fate = self._disk.fate()
        kept = self._disk.universe.chance.randrange(len(content))
        if fate == "torn":
            super().append(content[:kept])
            self._disk.crash(fate)
        try:
            self._disk.check()
        except OSError:
            super().append(content[:kept])
            raise
        super().append(content)
        moment = self._disk.clock.now().timestamp()
        os.utime(self._path, (moment, moment))
        for batch in read_batches(content):
            self._disk.universe.recorded.update(decode_opened(body).id for body in batch.opened)
        if fate is not None:
            self._disk.crash(fate)


def lose_mark(folder: Path, universe: Universe) -> None:
    """The mark of what is durable is not synced: a loss of power may take it, or a part of it."""
    path = folder / FILE_NAME
    if not path.exists():
        return
    match universe.chance.choice(("kept", "gone", "torn")):
        case "gone":
            path.unlink()
        case "torn":
            path.write_bytes(path.read_bytes()[:7])
        case _:
            pass
