"""A queue that hands over whatever has gathered: the heart of every group commit."""

from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """Many threads put, one thread takes. A lone item is taken at once; no timer is involved."""

    def __init__(self, *, batch_max: int) -> None:
        self._batch_max = batch_max
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._is_closed = False

    def put(self, item: T) -> None:
        self._queue.put(item)

    def __len__(self) -> int:
        """Roughly how many items wait."""
        return self._queue.qsize()

    def close(self) -> None:
        """Let the taker finish what was put before, and then end."""
        self._queue.put(None)

    def take(self) -> list[T]:
        """Wait for at least one item; an empty list says that the queue is closed and empty."""
        batch: list[T] = []
        while not self._is_closed and len(batch) < self._batch_max:
            try:
                item = self._queue.get(block=not batch)
            except Empty:
                break
            if item is None:
                self._is_closed = True
            else:
                batch.append(item)
        return batch
