"""What all processes of a history share: time, chance, the trace, the books and the upstream."""

import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from steelyard.access.virtual_key import VirtualKey
from steelyard.app.stores import Stores
from tests.sim.funds import Funds
from tests.sim.life import LIFE, Life
from tests.sim.plan import Plan
from tests.sim.virtual_loop import VirtualLoop

BEGINNING = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@dataclass(slots=True)
class WallClock:
    """Implements Clock: the clock of one machine, which may jump."""

    loop: VirtualLoop
    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        elapsed = self.loop.time()
        return BEGINNING + self.ahead + timedelta(microseconds=round(elapsed * 1_000_000))


@dataclass(slots=True)
class Universe:
    """One history while it happens."""

    plan: Plan
    loop: VirtualLoop
    stores: Stores
    folder: Path
    keys: list[VirtualKey]
    chance: Random
    funds: Funds
    trace: list[str] = field(default_factory=list[str])
    # Bugs of the product: what no process should ever die of, and what no client should be told.
    problems: list[str] = field(default_factory=list[str])
    # Attempts that a disk has for good, and those of which a client has seen a byte.
    recorded: set[str] = field(default_factory=set[str])
    seen: set[str] = field(default_factory=set[str])
    is_calm: bool = False
    are_books_away: bool = False
    id_count: int = 0

    def note(self, what: str, /, **given: object) -> None:
        """One line of the trace."""
        life = LIFE.get(None)
        who = life.name if life else "-"
        words = " ".join(f"{name}={value}" for name, value in given.items())
        self.trace.append(f"{self.loop.time():10.4f}  {who:<12} {what} {words}".rstrip())

    def strikes(self, likelihood: float) -> bool:
        """Whether a fault happens now; none does in the calm after the storm."""
        return not self.is_calm and self.chance.random() < likelihood

    def check_books(self) -> None:
        """After each unit of work."""
        self.problems.extend(self.funds.problems())

    def new_life(self, name: str) -> Life:
        return Life(
            name, chance=self.chance, queue_s=self.plan.commit_s, on_trouble=self.note_trouble
        )

    def note_trouble(self, life: Life, error: BaseException) -> None:
        self.trace.extend(traceback.format_exception(error))
        self.problems.append(f"{life.name} failed: {type(error).__name__}: {error}")

    def next_id(self) -> str:
        """A UUIDv7 that the seed decides; in the order of its making."""
        self.id_count += 1
        moment = int((BEGINNING.timestamp() + self.loop.time()) * 1000)
        text = f"{moment:012x}7{self.id_count & 0xFFF:03x}8{self.id_count:015x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
