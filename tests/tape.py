"""A clock of seconds that a test moves, where limits ask for one."""

from dataclasses import dataclass


@dataclass
class Tape:
    """Tells where a test has put it."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at
