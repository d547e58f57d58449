"""The event loop that runs in this thread, found without asking the system.

asyncio asks it for the process's number each time, to know a fork; what is asked several times in
every request feels that.
"""

import asyncio
import os
import threading
from typing import Final


class _Known(threading.local):
    loop: asyncio.AbstractEventLoop | None = None


_known: Final = _Known()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop, or None where none runs. A loop belongs to the thread that it first ran in."""
    loop = _known.loop
    if loop is None or not loop.is_running():
        loop = _known.loop = asyncio._get_running_loop()  # pyright: ignore[reportPrivateUsage]
    return loop


def _forget() -> None:
    """Of the loop that the parent runs, a forked process has only a copy."""
    _known.loop = None


os.register_at_fork(after_in_child=_forget)
