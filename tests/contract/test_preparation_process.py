"""The second process of a busy worker: the same books with it as without, whenever it dies."""

import os
import signal
import subprocess
import sys
from multiprocessing import active_children

import pytest

from steelyard.entrypoints.preparation_process import PreparationStopped
from steelyard.entrypoints.worker_process import Worker
from tests.world import World

FAILING_WORKER = """
import sys
from pathlib import Path
from steelyard.entrypoints.preparation_process import PreparationProcess, Wanted

if __name__ == "__main__":
    preparation = PreparationProcess({})
    preparation.request(Wanted(Path("nowhere.outbox"), 0, 1))
    sys.exit("the worker fails")
"""


def test_a_backlog_is_settled_with_a_second_process(sqlite_world: World) -> None:
    worker = _busy_worker(sqlite_world, answers=5)

    read = worker.work()
    helpers = [child.name for child in active_children()]
    worker.close()

    assert read == 5
    assert helpers == ["preparation"]
    assert active_children() == []
    assert len(sqlite_world.events()) == 5
    assert sqlite_world.differences() == []


def test_a_second_process_that_dies_loses_nothing(sqlite_world: World) -> None:
    worker = _busy_worker(sqlite_world, answers=2)
    worker.work()
    for _ in range(3):
        sqlite_world.chat()
    for child in active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()

    with pytest.raises(PreparationStopped):
        worker.work()
    worker.work()
    worker.close()

    assert len(sqlite_world.events()) == 5
    assert sqlite_world.balance().held.picos == 0
    assert sqlite_world.differences() == []


def test_a_worker_that_fails_does_not_wait_for_its_second_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING_WORKER], capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 1
    assert "the worker fails" in ended.stderr


def _busy_worker(world: World, *, answers: int) -> Worker:
    world.organisation(dollars="1")
    for _ in range(answers):
        world.chat()
    return Worker(world.stores, world.settings.outbox_dir, batch_max=1, backlog_min=1)
