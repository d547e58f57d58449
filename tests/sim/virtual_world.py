"""Puts virtual threads, ids and logs under the product's own code, for as long as a history lasts."""

import logging
from collections.abc import Generator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import pytest
import structlog

from steelyard import ids
from steelyard.billing import hold_desk
from steelyard.eventlog import group_commit, outbox
from tests.sim.bugs import BUGS
from tests.sim.life import LIFE
from tests.sim.universe import Universe
from tests.sim.virtual_threads import (
    VirtualCommitQueue,
    VirtualQueue,
    VirtualThreading,
    result_of,
    run_in_thread,
)


@contextmanager
def virtual_world(universe: Universe) -> Generator[None]:
    """Threads take turns, ids come from the seed, and every log line goes to the trace."""
    patch = pytest.MonkeyPatch()
    for module in (hold_desk, outbox, group_commit):
        patch.setattr(module, "threading", VirtualThreading)
    patch.setattr(hold_desk, "BatchQueue", VirtualQueue)
    patch.setattr(outbox, "CommitQueue", VirtualCommitQueue)
    patch.setattr(Future, "result", result_of)
    patch.setattr(anyio.to_thread, "run_sync", run_in_thread)
    patch.setattr(ids, "uuid7", universe.next_id)
    if universe.plan.bug is not None:
        BUGS[universe.plan.bug].switch_on(patch)
    before = structlog.get_config()
    structlog.configure(processors=[_tracer(universe)], wrapper_class=structlog.BoundLogger)
    try:
        yield
    finally:
        patch.undo()
        structlog.configure(**before)


def _tracer(universe: Universe) -> Any:
    def trace(_logger: object, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
        life = LIFE.get(None)
        if life is None or not life.is_dead:
            universe.note(line.pop("event"), **line)
        raise structlog.DropEvent

    return trace


logging.getLogger("asyncio").setLevel(logging.CRITICAL)
