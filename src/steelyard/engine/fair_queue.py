"""Who is next: the waiting sequences by fairness key, the key that was served least first.

Each key has a counter of the tokens it was served, prompt and answer alike (a virtual token
counter: Sheng and others, "Fairness in Serving Large Language Models", 2024). A key that comes
back from idling starts level with those that are busy: nobody saves up turns.
"""

from collections import Counter, deque
from collections.abc import Container, Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What waits: it belongs to a fairness key."""

    @property
    def fairness_key(self) -> str: ...


T = TypeVar("T", bound=Queued)


class FairQueue(Generic[T]):
    """A line of waiting sequences for each fairness key."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._served: dict[str, int] = {}
        self._busy: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def arrive(self, item: T) -> None:
        """Stand at the end of its key's line."""
        key = item.fairness_key
        if self._busy[key] == 0:
            level = min((self._served[busy] for busy in self._busy_keys()), default=0)
            self._served[key] = level
        self._busy[key] += 1
        self._lines.setdefault(key, deque()).append(item)

    def come_back(self, item: T) -> None:
        """Stand at the head of its key's line again, after having been taken."""
        self._lines.setdefault(item.fairness_key, deque()).appendleft(item)

    def peek(self, *, passing: Container[str] = ()) -> T | None:
        """The one to take next, of a key that is not passed over this time."""
        keys = [key for key, line in self._lines.items() if line and key not in passing]
        if not keys:
            return None
        return self._lines[min(keys, key=self.served)][0]

    def take(self, item: T) -> None:
        """Take the one that `peek` has shown; it stays busy until it leaves."""
        taken = self._lines[item.fairness_key].popleft()
        assert taken is item, "only the head of a line can be taken"

    def remove(self, item: T) -> None:
        """Take one out of the middle of its line."""
        self._lines[item.fairness_key].remove(item)

    def leave(self, item: T) -> None:
        """It has ended: a key without any other is forgotten."""
        key = item.fairness_key
        self._busy[key] -= 1
        assert self._busy[key] >= 0, f"{key!r} has left more often than it came"
        if self._busy[key] == 0:
            del self._busy[key], self._served[key]
            self._lines.pop(key, None)

    def count(self, item: T, *, tokens: int) -> None:
        """Say that one was served so many tokens."""
        self._served[item.fairness_key] += tokens

    def served(self, key: str) -> int:
        """How many tokens a busy key was served, above the level at which it came."""
        return self._served[key]

    def _busy_keys(self) -> list[str]:
        return [key for key, count in self._busy.items() if count > 0]
