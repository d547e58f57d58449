"""No history of the scheduler leaks a block, lends one twice, or leaves anybody waiting."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.engine.block_pool import BLOCK_TOKENS, BlockPool, chain_digest
from steelyard.engine.scheduler import Scheduler, StepRow


@dataclass(eq=False)
class Asked:
    """A sequence without a model: its answer is always token 1."""

    context_ids: list[int]
    left: int
    fairness_key: str = ""
    cache_root: bytes = b""
    computed: int = 0
    cached_tokens: int | None = None
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)


class FilledBlocks:
    """What a real memory would hold: the tokens that were written, checked before each use."""

    def __init__(self) -> None:
        self.written: dict[int, int] = {}

    def step(self, rows: list[StepRow[Asked]]) -> None:
        new_slots = [slot for row in rows for slot in slots(row.sequence, row.begin, row.end)]
        assert len(new_slots) == len(set(new_slots)), "two rows write to one slot"
        for row in rows:
            fed = row.sequence.context_ids[row.begin : row.end]
            self.written.update(zip(slots(row.sequence, row.begin, row.end), fed, strict=True))
        for row in rows:
            seen = [self.written[slot] for slot in slots(row.sequence, 0, row.end)]
            assert seen == row.sequence.context_ids[: row.end], "a row sees another's tokens"


def slots(asked: Asked, begin: int, end: int) -> list[int]:
    return [
        asked.blocks[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS
        for at in range(begin, end)
    ]


def held_by(sequences: list[Asked]) -> set[int]:
    return {block for sequence in sequences for block in sequence.blocks}


# Prompts over three tokens and few lengths begin alike often.
prompts = st.tuples(
    st.sampled_from([0, 16, 32, 48]), st.lists(st.integers(0, 2), min_size=1, max_size=40)
).map(lambda parts: [1] * parts[0] + parts[1])
arrivals = st.tuples(prompts, st.integers(1, 30), st.sampled_from("abc"))
acts = st.lists(
    st.one_of(
        arrivals, st.just("step"), st.just("step"), st.tuples(st.just("cancel"), st.integers(0, 9))
    ),
    max_size=60,
)


@given(
    acts=acts,
    blocks=st.integers(128 // BLOCK_TOKENS, 320 // BLOCK_TOKENS),
    rows_max=st.integers(1, 5),
    budget=st.integers(1, 64),
    is_caching=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_history_leaks_a_block_or_lends_one_twice(
    acts: list[Any], blocks: int, rows_max: int, budget: int, is_caching: bool
) -> None:
    pool = BlockPool(blocks)
    scheduler: Scheduler[Asked] = Scheduler(
        pool, max_batch_size=rows_max, prefill_tokens_per_step=budget, is_caching=is_caching
    )
    memory, alive = FilledBlocks(), []

    for act in acts:
        if act == "step":
            step(scheduler, memory, alive)
        elif act[0] == "cancel":
            for asked in alive[act[1] : act[1] + 1]:
                scheduler.leave(asked)
                alive.remove(asked)
        else:
            asked = Asked(list(act[0]), left=act[1], fairness_key=act[2])
            scheduler.arrive(asked)
            alive.append(asked)
        assert pool.held == len(held_by(alive))
    steps = 0
    while alive:
        step(scheduler, memory, alive)
        steps += 1
        assert steps < 20_000, "somebody waits for ever"

    assert pool.held == 0
    assert pool.free == blocks


def step(scheduler: Scheduler[Asked], memory: FilledBlocks, alive: list[Asked]) -> None:
    rows = scheduler.plan()
    assert bool(rows) == bool(alive), "work without a step, or a step without work"
    memory.step(rows)
    scheduler.advance(rows)
    for row in rows:
        if row.is_drawing:
            row.sequence.context_ids.append(1)
            row.sequence.left -= 1
        if row.sequence.left == 0:
            scheduler.leave(row.sequence)
            alive.remove(row.sequence)


def test_a_prompt_that_begins_alike_takes_the_same_blocks() -> None:
    pool = BlockPool(20)
    scheduler: Scheduler[Asked] = Scheduler(
        pool, max_batch_size=4, prefill_tokens_per_step=100, is_caching=True
    )
    first, second = Asked([7] * 40, left=1), Asked([7] * 33 + [8] * 5, left=1)
    scheduler.arrive(first)
    scheduler.advance(scheduler.plan())

    scheduler.arrive(second)
    scheduler.plan()

    assert (first.cached_tokens, second.cached_tokens) == (0, 32)
    shared = 32 // BLOCK_TOKENS
    assert second.blocks[:shared] == first.blocks[:shared]
    assert second.blocks[shared] != first.blocks[shared]


def test_another_salt_finds_nothing() -> None:
    pool = BlockPool(20)
    scheduler: Scheduler[Asked] = Scheduler(
        pool, max_batch_size=4, prefill_tokens_per_step=100, is_caching=True
    )
    first, second = Asked([7] * 40, left=1), Asked([7] * 40, left=1, cache_root=b"other")
    scheduler.arrive(first)
    scheduler.advance(scheduler.plan())

    scheduler.arrive(second)
    scheduler.plan()

    assert second.cached_tokens == 0


def test_a_prompt_known_to_its_end_still_feeds_its_last_token() -> None:
    pool = BlockPool(20)
    scheduler: Scheduler[Asked] = Scheduler(
        pool, max_batch_size=4, prefill_tokens_per_step=100, is_caching=True
    )
    first, again = Asked([7] * 32, left=1), Asked([7] * 32, left=1)
    scheduler.arrive(first)
    scheduler.advance(scheduler.plan())
    scheduler.leave(first)

    scheduler.arrive(again)
    [row] = scheduler.plan()

    assert (row.begin, row.end) == (32 - BLOCK_TOKENS, 32)


def planned(scheduler: Scheduler[Asked]) -> dict[int, list[tuple[int, int]]]:
    """The parts that each prompt of 100 tokens is read in, by its place."""
    sequences = list(scheduler.waiting)
    parts: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(sequences))}
    while any(not of_one or of_one[-1][1] < 100 for of_one in parts.values()):
        rows = scheduler.plan()
        scheduler.advance(rows)
        for row in rows:
            parts[sequences.index(row.sequence)].append((row.begin, row.end))
            if row.is_drawing:
                scheduler.leave(row.sequence)
    return parts


def make_scheduler(*, budget: int, is_caching: bool = True) -> Scheduler[Asked]:
    return Scheduler(
        BlockPool(200), max_batch_size=8, prefill_tokens_per_step=budget, is_caching=is_caching
    )


def test_answers_to_one_prompt_that_arrive_together_read_it_once() -> None:
    scheduler = make_scheduler(budget=64)
    for _ in range(4):
        scheduler.arrive(Asked([7] * 100, left=1))

    parts = planned(scheduler)

    assert parts[0] == [(0, 64), (64, 100)]
    assert all(parts[i] == [(96, 100)] for i in (1, 2, 3))


def test_nobody_waits_for_a_beginning_that_is_not_shared_with_them() -> None:
    scheduler = make_scheduler(budget=200)
    uncached = make_scheduler(budget=200, is_caching=False)
    alike = [Asked([7] * 60, left=1), Asked([7] * 8 + [8] * 52, left=1)]
    apart = [Asked([9] * 60, left=1), Asked([9] * 60, left=1, cache_root=b"other")]
    for asked in (*alike, *apart):
        scheduler.arrive(asked)
    for asked in (Asked([7] * 60, left=1), Asked([7] * 60, left=1)):
        uncached.arrive(asked)

    rows = [len(scheduler.plan()), len(uncached.plan())]

    assert rows == [4, 2]


def test_who_waits_for_a_shared_beginning_holds_no_other_key_up() -> None:
    scheduler = make_scheduler(budget=200)
    first, second = (Asked([7] * 60, left=1, fairness_key="a") for _ in range(2))
    other = Asked([9] * 60, left=1, fairness_key="b")
    for asked in (first, second, other):
        scheduler.arrive(asked)

    rows = scheduler.plan()

    assert [row.sequence for row in rows] == [first, other]


def test_when_the_reader_leaves_the_next_one_reads_on_from_there() -> None:
    scheduler = make_scheduler(budget=32)
    reader, waits = (Asked([7] * 100, left=1) for _ in range(2))
    scheduler.arrive(reader)
    scheduler.arrive(waits)
    scheduler.advance(scheduler.plan())
    scheduler.leave(reader)

    [row] = scheduler.plan()

    assert (row.sequence, row.begin, row.end) == (waits, 32, 64)


def test_the_block_used_longest_ago_is_forgotten_first() -> None:
    pool = BlockPool(4)
    blocks = pool.take(4)
    digests = [chain_digest(b"", [i]) for i in range(4)]
    for block, digest in zip(blocks, digests, strict=True):
        pool.remember(block, digest)
    pool.release([blocks[2]])
    pool.release([blocks[0]])

    pool.take(1)

    assert pool.find(digests[2]) is None
    assert pool.find(digests[0]) == blocks[0]


def test_blocks_of_one_sequence_lie_side_by_side_while_there_is_room() -> None:
    pool = BlockPool(32)
    tables: list[list[int]] = [[], [], []]

    for _ in range(6):
        for table in tables:
            table += pool.take(1, after=table[-1] if table else None)

    assert all(table == list(range(table[0], table[0] + 6)) for table in tables)


def test_the_key_served_least_goes_first() -> None:
    scheduler: Scheduler[Asked] = Scheduler(
        BlockPool(100), max_batch_size=1, prefill_tokens_per_step=100, is_caching=False
    )
    crowd = [Asked([5] * 50, left=1, fairness_key="busy") for _ in range(4)]
    single = Asked([6] * 50, left=1, fairness_key="quiet")
    for asked in (*crowd, single):
        scheduler.arrive(asked)
    order: list[Asked] = []

    for _ in range(3):
        rows = scheduler.plan()
        scheduler.advance(rows)
        order += [row.sequence for row in rows]
        scheduler.leave(rows[0].sequence)

    assert order == [crowd[0], single, crowd[1]]
