"""A process that prepares the next batch of events while the worker posts the one before it.

It reads an outbox, decodes, checks, hashes, rates and compresses; it has no books. It ends when the
worker does.
"""

import gc
import multiprocessing
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from steelyard.billing.batch_rating import BatchRating
from steelyard.billing.event_preparation import PreparedBatch, prepare_batch
from steelyard.errors import Failure
from steelyard.eventlog.log import EventLogReader, EventLogUnavailable
from steelyard.eventlog.outbox_reader import OutboxReader
from steelyard.pricing.price_book import CanonicalDocument


class PreparationStopped(Failure):
    """The process that prepares batches has died; the worker starts another one."""

    code = "preparation_stopped"


class _Failed(msgspec.Struct, frozen=True):
    """Why a batch could not be prepared."""

    reason: str


def _write_answer(answer: PreparedBatch | _Failed | None) -> bytes:
    """A letter that says what follows; MessagePack takes a third of the time of pickling."""
    if answer is None:
        return b"n"
    letter = b"b" if isinstance(answer, PreparedBatch) else b"f"
    return letter + _encoder.encode(answer)


def _read_answer(answer: bytes) -> PreparedBatch | _Failed | None:
    match answer[:1]:
        case b"b":
            return _batch_decoder.decode(memoryview(answer)[1:])
        case b"f":
            return msgspec.msgpack.decode(answer[1:], type=_Failed)
        case _:
            return None


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(PreparedBatch)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records to prepare: those of an outbox after a position."""

    path: Path
    position: int
    records_max: int


class PreparationProcess:
    """One process at work on one batch at a time."""

    def __init__(self, documents: Mapping[str, CanonicalDocument]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, documents), name="preparation", daemon=True
        )
        self._process.start()
        theirs.close()
        self._requested: Wanted | None = None

    def request(self, wanted: Wanted) -> None:
        """Begin with a batch; what was requested before and not fetched is dropped."""
        if self._requested == wanted:
            return
        try:
            if self._requested is not None:
                self._connection.recv_bytes()
            self._connection.send(wanted)
        except (EOFError, OSError) as error:
            raise PreparationStopped from error
        self._requested = wanted

    def fetch(self, wanted: Wanted) -> PreparedBatch | None:
        """Wait for a batch; None if there are no records."""
        self.request(wanted)
        try:
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise PreparationStopped from error
        self._requested = None
        prepared = _read_answer(answer)
        if isinstance(prepared, _Failed):
            raise EventLogUnavailable(prepared.reason)
        return prepared

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)


def prepare_wanted(
    reader: OutboxReader, wanted: Wanted, rating: BatchRating
) -> PreparedBatch | None:
    """Read and prepare a batch; None if there are no records."""
    return prepare_next(reader, wanted.position, rating, records_max=wanted.records_max)


def prepare_next(
    reader: EventLogReader, position: int, rating: BatchRating, *, records_max: int
) -> PreparedBatch | None:
    """Read and prepare what comes after a position of any log; None if there is nothing."""
    records = reader.read_after(position, limit=records_max)
    return prepare_batch(records, log_id=reader.log_id, rating=rating) if records else None


def _serve(connection: Connection, documents: Mapping[str, CanonicalDocument]) -> None:
    # The worker decides when to stop; then the pipe ends. A worker that fails ends its children with
    # SIGTERM and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Nothing here refers to itself in a circle, so there is nothing for the collector to find.
    gc.disable()
    rating = BatchRating(documents)
    readers: dict[Path, OutboxReader] = {}
    while True:
        try:
            wanted: Wanted = connection.recv()
        except EOFError:
            return
        answer: PreparedBatch | _Failed | None
        try:
            if wanted.path not in readers:
                readers[wanted.path] = OutboxReader(wanted.path)
            answer = prepare_wanted(readers[wanted.path], wanted, rating)
        except EventLogUnavailable as failure:
            answer = _Failed(str(failure))
        try:
            connection.send_bytes(_write_answer(answer))
        except BrokenPipeError:
            return
