"""Pauses the garbage collector around work that makes many objects and no circles."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Generator[None]:
    """Looking for circles where there are none would cost a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
