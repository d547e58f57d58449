"""Decides each step: who feeds which tokens, whose blocks they go to, and who has to wait.

It knows neither torch nor text. A running sequence whose context is known but for its last token
decodes; any other still reads its prompt. When the blocks run out, the sequence admitted last
gives its blocks back and is computed again later.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from steelyard.engine.block_pool import BLOCK_TOKENS, BlockPool, chain_digest
from steelyard.engine.fair_queue import FairQueue


class Scheduled(Protocol):
    """What the scheduler reads and keeps of a sequence."""

    # Prompt and answer so far; and of these, how many have their keys and values in blocks.
    context_ids: list[int]
    computed: int
    cached_tokens: int | None
    blocks: list[int]
    digests: list[bytes]

    @property
    def fairness_key(self) -> str: ...

    @property
    def cache_root(self) -> bytes: ...


S = TypeVar("S", bound=Scheduled)
S_co = TypeVar("S_co", bound=Scheduled, covariant=True)


@dataclass(frozen=True, slots=True)
class StepRow(Generic[S_co]):
    """One sequence's part of a step: it feeds `context_ids[begin:end]`."""

    sequence: S_co
    begin: int
    end: int
    # Whether its next token is known after this step.
    is_drawing: bool

    @property
    def tokens(self) -> int:
        return self.end - self.begin


class Scheduler(Generic[S]):
    """Sequences wait, run, and may be sent back to wait."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_size: int,
        prefill_tokens_per_step: int,
        is_caching: bool,
    ) -> None:
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._prefill_tokens_per_step = prefill_tokens_per_step
        self._is_caching = is_caching
        self.waiting: FairQueue[S] = FairQueue()
        self.running: list[S] = []
        self.preemptions = 0

    def arrive(self, sequence: S) -> None:
        """Let a sequence wait for its place."""
        assert sequence.context_ids, "a sequence without tokens has nothing to feed"
        self.waiting.arrive(sequence)

    def leave(self, sequence: S) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._free(sequence)
        self.waiting.leave(sequence)

    def plan(self) -> list[StepRow[S]]:
        """The rows of the next step; their blocks are theirs already."""
        sent_back_before = self.preemptions
        rows = self._plan_decoding()
        budget = self._prefill_tokens_per_step
        for sequence in self._by_turn(s for s in list(self.running) if _is_reading(s)):
            if sequence in self.running and budget > 0:
                budget -= self._plan_reading(sequence, budget, rows)
        if self.preemptions == sent_back_before:
            self._admit(budget, rows)
        # Who was sent back after its row was planned has no blocks to write to.
        return [row for row in rows if row.sequence in self.running]

    def advance(self, rows: list[StepRow[S]]) -> None:
        """Take note that a step has been computed."""
        for row in rows:
            sequence = row.sequence
            assert sequence.computed == row.begin, "a step began where the last one did not end"
            sequence.computed = row.end
            self.waiting.count(sequence, tokens=row.tokens)
            if self._is_caching:
                self._remember(sequence)

    def _plan_decoding(self) -> list[StepRow[S]]:
        rows: list[StepRow[S]] = []
        for sequence in [s for s in self.running if not _is_reading(s)]:
            if sequence in self.running and self._make_room(sequence, sequence.computed + 1):
                rows.append(_row(sequence, sequence.computed + 1))
        return rows

    def _plan_reading(self, sequence: S, budget: int, rows: list[StepRow[S]]) -> int:
        end = min(len(sequence.context_ids), sequence.computed + budget)
        if not self._make_room(sequence, end):
            return 0
        rows.append(_row(sequence, end))
        return end - sequence.computed

    def _admit(self, budget: int, rows: list[StepRow[S]]) -> None:
        passing: set[str] = set()
        while budget > 0 and len(self.running) < self._max_batch_size:
            sequence = self.waiting.peek(passing=passing)
            if sequence is None:
                return
            if self._is_being_read(sequence):
                passing.add(sequence.fairness_key)
                continue
            if not self._start(sequence):
                return
            self.waiting.take(sequence)
            self.running.append(sequence)
            budget -= self._plan_reading(sequence, budget, rows)

    def _start(self, sequence: S) -> bool:
        """Give it the blocks that remember its beginning, if there is room for the rest as well."""
        found = self._find_cached(sequence) if self._is_caching else []
        # One more token than there is, so that it is not sent back at its first answer.
        needed = _blocks_for(len(sequence.context_ids) + 1) - len(found)
        revived = sum(1 for block, _ in found if self._pool.is_free(block))
        if needed + revived > self._pool.free:
            return False
        for block, digest in found:
            self._pool.share(block)
            sequence.blocks.append(block)
            sequence.digests.append(digest)
        sequence.computed = len(found) * BLOCK_TOKENS
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        return True

    def _is_being_read(self, sequence: S) -> bool:
        """Whether most of what it would read is being read for another, and can be shared soon."""
        if not self._is_caching:
            return False
        reading = [
            s for s in self.running if _is_reading(s) and s.cache_root == sequence.cache_root
        ]
        if not reading:
            return False
        found = len(self._find_cached(sequence)) * BLOCK_TOKENS
        soon = max(_shared_tokens(sequence.context_ids, s.context_ids) for s in reading)
        return 2 * (soon - found) >= len(sequence.context_ids) - found

    def _find_cached(self, sequence: S) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        digest = sequence.cache_root
        # The last token is always fed: the answer begins with what the model says after it.
        for begin in range(0, len(sequence.context_ids) - BLOCK_TOKENS, BLOCK_TOKENS):
            digest = chain_digest(digest, sequence.context_ids[begin : begin + BLOCK_TOKENS])
            block = self._pool.find(digest)
            if block is None:
                break
            found.append((block, digest))
        return found

    def _make_room(self, sequence: S, tokens: int) -> bool:
        """Blocks for so many tokens; False when it had to give way itself."""
        missing = _blocks_for(tokens) - len(sequence.blocks)
        while missing > self._pool.free:
            last = self.running[-1]
            self._send_back(last)
            if last is sequence:
                return False
        if missing > 0:
            after = sequence.blocks[-1] if sequence.blocks else None
            sequence.blocks += self._pool.take(missing, after=after)
        return True

    def _send_back(self, sequence: S) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.come_back(sequence)
        self.preemptions += 1

    def _free(self, sequence: S) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.digests, sequence.computed = [], [], 0

    def _remember(self, sequence: S) -> None:
        digests = sequence.digests
        for at in range(len(digests), sequence.computed // BLOCK_TOKENS):
            before = digests[-1] if digests else sequence.cache_root
            begin = at * BLOCK_TOKENS
            digest = chain_digest(before, sequence.context_ids[begin : begin + BLOCK_TOKENS])
            digests.append(digest)
            self._pool.remember(sequence.blocks[at], digest)

    def _by_turn(self, sequences: Iterable[S]) -> list[S]:
        return sorted(sequences, key=lambda s: self.waiting.served(s.fairness_key))


def _row(sequence: S, end: int) -> StepRow[S]:
    return StepRow(sequence, sequence.computed, end, end == len(sequence.context_ids))


def _is_reading(sequence: Scheduled) -> bool:
    return len(sequence.context_ids) - sequence.computed > 1


def _shared_tokens(context: list[int], other: list[int]) -> int:
    """How many tokens two contexts begin with alike, in full blocks that the first can be given."""
    # The last token is always fed.
    shared_max = min(len(context) - 1, len(other)) // BLOCK_TOKENS * BLOCK_TOKENS
    for begin in range(0, shared_max, BLOCK_TOKENS):
        block = slice(begin, begin + BLOCK_TOKENS)
        if context[block] != other[block]:
            return begin
    return shared_max


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
