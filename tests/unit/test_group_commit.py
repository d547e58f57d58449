"""When what was put is handed over to the thread that writes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from steelyard.eventlog.group_commit import Commit, CommitQueue


def taken(queue: CommitQueue[int]) -> list[int]:
    commit = queue.take()
    assert commit is not None, "something was put"
    items = commit.items
    commit.finish()
    return items


def test_what_an_event_loop_puts_in_one_turn_is_one_commit_after_it() -> None:
    queue = CommitQueue[int](batch_max=10)

    async def put() -> list[Commit[int]]:
        commits = [queue.put(number) for number in range(3)]
        assert queue._commits.empty()  # pyright: ignore[reportPrivateUsage]
        taking = asyncio.get_running_loop().run_in_executor(None, taken, queue)
        await asyncio.gather(*(commit.durable() for commit in commits))
        assert await taking == [0, 1, 2]
        return commits

    assert len(set(asyncio.run(put()))) == 1


def test_what_a_thread_puts_is_handed_over_at_once() -> None:
    queue = CommitQueue[int](batch_max=10)

    queue.put(1)

    assert taken(queue) == [1]


def test_a_thread_that_waits_does_not_depend_on_the_event_loop() -> None:
    queue = CommitQueue[int](batch_max=10)

    def put_and_wait() -> list[int]:
        queue.put(2)
        return taken(queue)

    async def put() -> list[int]:
        queue.put(1)
        with ThreadPoolExecutor(1) as threads:
            # The loop does nothing meanwhile.
            return threads.submit(put_and_wait).result(timeout=60)

    assert asyncio.run(put()) == [1, 2]


def test_a_full_commit_is_handed_over_before_the_next_begins() -> None:
    queue = CommitQueue[int](batch_max=2)

    async def put() -> list[int]:
        for number in range(3):
            queue.put(number)
        return taken(queue)

    assert asyncio.run(put()) == [0, 1]
    assert taken(queue) == [2]


def test_many_at_once_are_put_into_as_many_commits_as_they_need() -> None:
    queue = CommitQueue[int](batch_max=2)

    async def put() -> int:
        queue.put(0)
        return len(queue.put_all([1, 2, 3, 4]))

    assert asyncio.run(put()) == 3
    assert [taken(queue), taken(queue), taken(queue)] == [[0, 1], [2, 3], [4]]
    assert len(queue) == 0


def test_closing_hands_over_what_a_loop_has_put_that_ends() -> None:
    queue = CommitQueue[int](batch_max=10)

    async def put_and_close() -> None:
        queue.put(1)
        queue.close()
        assert taken(queue) == [1]

    asyncio.run(put_and_close())

    assert queue.take() is None
    assert len(queue) == 0


def test_what_gathers_is_handed_over_when_there_is_enough_or_after_a_while() -> None:
    queue = CommitQueue[int](batch_max=10, gather_s=0.01, gather_max=2)

    async def put() -> list[list[int]]:
        commits = [queue.put(number) for number in range(2)]
        together = [taken(queue)]
        alone = queue.put(2)
        assert queue._commits.empty()  # pyright: ignore[reportPrivateUsage]
        together.append(await asyncio.to_thread(taken, queue))
        await asyncio.gather(*(commit.durable() for commit in [*commits, alone]))
        return together

    assert asyncio.run(put()) == [[0, 1], [2]]


def test_what_may_wait_goes_with_the_next_that_may_not() -> None:
    queue = CommitQueue[int](batch_max=10)

    async def put() -> list[int]:
        queue.put(1, may_wait_s=3600)
        await asyncio.sleep(0)
        assert queue._commits.empty()  # pyright: ignore[reportPrivateUsage]
        queue.put(2)
        queue.put(3, may_wait_s=3600)
        return await asyncio.get_running_loop().run_in_executor(None, taken, queue)

    assert asyncio.run(put()) == [1, 2, 3]


def test_what_may_wait_is_handed_over_alone_in_the_end() -> None:
    queue = CommitQueue[int](batch_max=10)

    async def put() -> list[int]:
        queue.put(1, may_wait_s=0.01)
        return await asyncio.get_running_loop().run_in_executor(None, taken, queue)

    assert asyncio.run(put()) == [1]


def test_what_was_handed_over_takes_in_what_may_wait_until_it_is_taken() -> None:
    queue = CommitQueue[int](batch_max=10)

    async def put() -> list[int]:
        queue.put(1)
        await asyncio.sleep(0)
        queue.put(2, may_wait_s=3600)
        return taken(queue)

    assert asyncio.run(put()) == [1, 2]


def test_each_waits_as_long_as_it_will_and_no_longer() -> None:
    async def wait() -> list[str]:
        commit = Commit[int]()

        async def one(name: str, timeout_s: float | None) -> str:
            try:
                await commit.durable(timeout_s=timeout_s)
            except TimeoutError:
                return f"{name} gave up"
            return f"{name} knows"

        waits = [("long", 60.0), ("short", 0.01), ("shorter", 0.005), ("for ever", None)]
        waiting = [asyncio.ensure_future(one(*each)) for each in waits]
        done, _ = await asyncio.wait(waiting[1:3], timeout=30)
        assert len(done) == 2
        assert not waiting[0].done()
        commit.finish()
        return await asyncio.gather(*waiting)

    assert asyncio.run(wait()) == [
        "long knows",
        "short gave up",
        "shorter gave up",
        "for ever knows",
    ]


def test_who_waits_no_longer_is_not_told() -> None:
    async def wait() -> None:
        commit = Commit[int]()
        left, stays = (asyncio.ensure_future(commit.durable(timeout_s=60)) for _ in range(2))
        await asyncio.sleep(0)
        left.cancel()
        commit.finish()
        await asyncio.wait_for(stays, 30)
        assert left.cancelled()

    asyncio.run(wait())
