"""Watches that no source has a gap in its sequence, as its events come in, in any order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class SequenceBooks(Protocol):
    """The sequences of all sources, as the books have them."""

    def sequences(self) -> Mapping[str, tuple[int, int]]: ...

    def sequences_of(self, source: str) -> Sequence[int]: ...

    def quarantined_places(self) -> Collection[tuple[str, int]]: ...


@dataclass(slots=True)
class _Chain:
    """Everything up to `whole` is there; `early` came before something that it follows.

    Those that were early at the look before this one are `late`: what they wait for is a gap.
    """

    whole: int = 0
    early: set[int] = field(default_factory=set[int])
    waited_at: int = -1

    def see(self, sequence: int) -> None:
        if sequence > self.whole:
            self.early.add(sequence)
        while self.whole + 1 in self.early:
            self.whole += 1
            self.early.discard(self.whole)


@dataclass(slots=True)
class SequenceWatch:
    """Knows the end of each source's chain, and what is missing before it."""

    _chains: dict[str, _Chain] = field(default_factory=dict[str, _Chain])
    _missing: dict[str, int] = field(default_factory=dict[str, int])

    def begin(self, books: SequenceBooks) -> None:
        """Start from what is in the books."""
        for source, (count, highest) in books.sequences().items():
            chain = self._chains[source] = _Chain()
            if count == highest:
                chain.whole = highest
                continue
            for sequence in books.sequences_of(source):
                chain.see(sequence)

    def see(self, source: str, sequence: int) -> None:
        self._chains.setdefault(source, _Chain()).see(sequence)

    def gaps(self, books: SequenceBooks) -> int:
        """Events that are missing before others, save those in quarantine.

        Several logs may bring the events of one source, so one that is only late is no gap: what
        is missing has to be missing at two looks, one after the other.
        """
        waiting = [chain for chain in self._chains.values() if chain.early]
        if waiting:
            for source, sequence in books.quarantined_places():
                if source in self._chains:
                    self._chains[source].see(sequence)
        self._missing = {}
        for source, chain in self._chains.items():
            has_waited, chain.waited_at = chain.waited_at == chain.whole, -1
            if chain.early:
                chain.waited_at = chain.whole
                if has_waited:
                    self._missing[source] = max(chain.early) - chain.whole - len(chain.early)
        return sum(self._missing.values())

    def missing(self) -> list[str]:
        return [f"{source} lacks {count} events" for source, count in self._missing.items()]
