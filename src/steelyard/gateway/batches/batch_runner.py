"""Runs batches: each line is a request like any other, many at once, in memory only while it runs.

Read `BatchRunner.run` first: it works on whatever is open, until the gateway stops, and takes it up
again where it was.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from steelyard.access.rate_limit import RateLimited
from steelyard.access.virtual_key import VirtualKey
from steelyard.clock import Clock
from steelyard.errors import Failure, Refusal, SteelyardError
from steelyard.eventlog.disk import sync_folder
from steelyard.eventlog.log import EventLogUnavailable
from steelyard.gateway.attempt import Gateway
from steelyard.gateway.batches.batch_lines import (
    BatchLine,
    OpenLines,
    asked_by,
    check_lines,
    read_line,
)
from steelyard.gateway.batches.batch_results import BatchResults, JournalEntry
from steelyard.gateway.batches.batch_store import BatchStore
from steelyard.gateway.batches.records import BatchesUnavailable, Status, StoredBatch, StoredFile
from steelyard.gateway.serve import serve
from steelyard.gateway.upstreams.base import UpstreamUnavailable
from steelyard.gateway.whole_client import WholeClient
from steelyard.gateway.workloads.asked import Asked
from steelyard.ids import derived_id

log = structlog.get_logger()

TRIES_MAX: Final = 5
FIRST_PAUSE_S: Final = 0.25
PAUSE_S_MAX: Final = 15.0
PROGRESS_S: Final = 1.0
KEY_S: Final = 5.0
# Lines in hand for each that is asked: the others are written down and charged meanwhile.
LINES_PER_TURN: Final = 3
BUSY: Final = frozenset({429, 503})
WAITED_FOR: Final = (
    RateLimited,
    UpstreamUnavailable,
    EventLogUnavailable,
    BatchesUnavailable,
)


class LineRefused(Exception):
    """A line will have no answer, and this is why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Running:
    """A batch that is at work."""

    batch: StoredBatch
    results: BatchResults
    key: VirtualKey
    stops: str = ""

    def counted(self) -> StoredBatch:
        done = self.results
        return replace_batch(self.batch, completed=done.completed, failed=done.failed)


class _Turn:
    """The right to ask the model's server for one line; it ends when the server has answered."""

    def __init__(self, turns: anyio.Semaphore) -> None:
        self._turns = turns
        self._is_held = False

    async def take(self) -> None:
        if not self._is_held:
            await self._turns.acquire()
            self._is_held = True

    def end(self) -> None:
        if self._is_held:
            self._turns.release()
            self._is_held = False


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that is asked. Once it may be charged, nothing cancels it before its result is told."""

    number: int
    read: BatchLine
    turn: _Turn
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def begin_charging(self) -> None:
        self.scope.shield = True
        self.turn.end()

    def end_charging(self) -> None:
        self.scope.shield = False


@dataclass(slots=True)
class BatchRunner:
    """Works on the batches of one gateway; their lines take turns."""

    store: BatchStore
    gateway: Gateway
    clock: Clock
    owner: str
    lines_at_once: int
    find_key: Callable[[str], VirtualKey]
    # What those of these events cost that are in the books, where the outbox has them no more.
    booked: Callable[[Set[str]], Mapping[str, str]]
    _woken: anyio.Event = field(default_factory=anyio.Event)
    _running: dict[str, _Running] = field(default_factory=dict[str, _Running])
    _taken: set[str] = field(default_factory=set[str])
    _turns: anyio.Semaphore = field(init=False)
    _cancelled: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self._turns = anyio.Semaphore(self.lines_at_once, fast_acquire=True)

    def find(self) -> None:
        """Finish the lines that an earlier life charged and did not tell; before anything of it is
        closed, in a thread."""
        for batch in self.store.open_batches(self.owner):
            if batch.status != "validating":
                organisation = self.find_key(batch.key_id).department.organisation
                results = self._open_results(batch)
                results.resolve(self._amounts, currency=organisation.currency)

    def wake(self) -> None:
        self._woken.set()

    async def cancel(self, batch: StoredBatch) -> StoredBatch:
        """Begin no more of its lines."""
        self._cancelled.add(batch.id)
        stopping = self._at(batch, "cancelling")
        running = self._running.get(batch.id)
        if running is not None:
            running.batch = stopping
            stopping = running.counted()
        await self._put(stopping)
        self.wake()
        return stopping

    def progress(self, batch: StoredBatch) -> StoredBatch:
        """The batch with the counts of this moment."""
        running = self._running.get(batch.id)
        return running.counted() if running else batch

    async def run(self) -> None:
        """Work for ever."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._woken = anyio.Event()
                open_batches = await anyio.to_thread.run_sync(self.store.open_batches, self.owner)
                for batch in open_batches:
                    if batch.id not in self._taken:
                        self._taken.add(batch.id)
                        tasks.start_soon(self._work_on, batch)
                with anyio.move_on_after(PAUSE_S_MAX):
                    await self._woken.wait()

    async def _work_on(self, batch: StoredBatch) -> None:
        try:
            # It may have ended since it was found.
            newest = await anyio.to_thread.run_sync(
                lambda: self.store.batch(batch.id, key_id=batch.key_id)
            )
            await self._work(newest)
        except Exception:
            # The disk of the batches, or the books: other requests go on, and this batch is taken
            # up again in a while.
            log.exception("batch.not_worked_on", batch_id=batch.id)
            await anyio.sleep(PAUSE_S_MAX)
        finally:
            self._taken.discard(batch.id)

    async def _work(self, batch: StoredBatch) -> None:
        if batch.status == "validating" or (batch.status == "cancelling" and not batch.total):
            batch = await self._validate(batch)
        if batch.is_over:
            return
        key = await anyio.to_thread.run_sync(self.find_key, batch.key_id)
        batch = replace_batch(batch, life=batch.life + 1)
        await self._put(batch)
        results = await anyio.to_thread.run_sync(self._open_results, batch)
        running = self._running[batch.id] = _Running(batch, results, key)
        is_over = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell, running)
                await self._answer_lines(running)
                tasks.cancel_scope.cancel()
            await self._finish(running)
            is_over = True
        finally:
            del self._running[batch.id]
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: results.close(is_over=is_over))

    async def _validate(self, batch: StoredBatch) -> StoredBatch:
        path = self.store.path_of(batch.input_file_id)
        total, errors = await anyio.to_thread.run_sync(
            lambda: check_lines(path, endpoint=batch.endpoint)
        )
        checked = replace_batch(batch, total=total, errors=tuple(errors))
        if batch.id in self._cancelled or batch.status == "cancelling":
            checked = self._at(checked, "cancelled")
        else:
            checked = self._at(checked, "failed" if errors else "in_progress")
        await self._put(checked)
        return checked

    async def _answer_lines(self, running: _Running) -> None:
        path, results = self.store.path_of(running.batch.input_file_id), running.results
        lines = OpenLines(path, is_done=results.is_done)

        async def answer_next() -> bool:
            turn = _Turn(self._turns)
            try:
                await turn.take()
                line = await self._take(running, lines, turn)
                if line is not None:
                    with line.scope:
                        await self._answer_line(running, line)
            finally:
                turn.end()
            return line is not None

        async def answer_all() -> None:
            while await answer_next():
                pass

        async with anyio.create_task_group() as tasks:
            for _ in range(self.lines_at_once * LINES_PER_TURN):
                tasks.start_soon(answer_all)
        await results.wait()

    async def _take(self, running: _Running, lines: OpenLines, turn: _Turn) -> _Line | None:
        """The next line, as long as there is to be one."""
        batch = running.batch
        while (found := await lines.take()) is not None:
            number, content = found
            if batch.id in self._cancelled or running.batch.status == "cancelling":
                running.stops = "cancelled"
                return None
            read = read_line(content)
            if self._now() < batch.expires_at:
                return _Line(number, read, turn)
            running.stops = "expired"
            error = {"code": "batch_expired", "message": "the batch ended before this line"}
            running.results.refused(number, read.custom_id, response=None, error=error)
        return None

    async def _answer_line(self, running: _Running, line: _Line) -> None:
        name, results, number = line.read.custom_id, running.results, line.number
        request_id = f"{running.batch.id}-{number}"
        try:
            client = await self._ask(running, line, request_id)
        except (LineRefused, SteelyardError) as error:
            told = {"code": error.code, "message": str(error)}
            results.refused(number, name, response=None, error=told)
            return
        if client.body is not None:
            body = msgspec.Raw(client.body)
            results.answered(number, name, request_id=request_id, body=body)
            return
        assert client.refused is not None, "a line was answered or refused"
        status = client.refused.status
        response = {"status_code": status, "request_id": request_id, "body": _json(client)}
        results.refused(number, name, response=response, error=None)

    async def _ask(self, running: _Running, line: _Line, request_id: str) -> WholeClient:
        """Ask until there is an answer, or a refusal that another try would not change."""
        pause_s, tries = FIRST_PAUSE_S, 0
        while True:
            client = WholeClient()
            await line.turn.take()
            try:
                asked = self._asked(running, line, tries)
                await serve(self.gateway, asked, running.key, client, request_id=request_id)
                if client.refused is None or client.refused.status not in BUSY:
                    return client
                failure: SteelyardError = UpstreamUnavailable("the model's server is busy")
            except RateLimited as limited:
                failure, pause_s = limited, max(limited.retry_after_s, FIRST_PAUSE_S)
            except Refusal:
                raise
            except Failure as broken:
                failure = broken
            finally:
                line.turn.end()
            tries += 1
            line.end_charging()
            # What is away or busy may come back; what breaks off does so for a reason.
            is_waiting = isinstance(failure, WAITED_FOR)
            if not is_waiting and tries >= TRIES_MAX:
                raise failure
            if self._now() >= running.batch.expires_at:
                raise LineRefused("batch_expired", "the batch ended before this line")
            if running.batch.status == "cancelling":
                raise LineRefused("batch_cancelled", "the batch was cancelled before this line")
            await anyio.sleep(min(pause_s, PAUSE_S_MAX))
            pause_s *= 2

    def _asked(self, running: _Running, line: _Line, tries: int) -> Asked:
        """The request of a line, whose attempts are called after it, and noted before they are
        charged."""
        batch, made = running.batch, [""]

        def new_attempt_id() -> str:
            place = f"{line.number}/{batch.life}/{tries}/{len(made)}"
            made.append(derived_id(place, after=batch.id.removeprefix("batch_")))
            return made[-1]

        async def keep(event_id: str, body: bytes) -> None:
            line.begin_charging()
            entry = JournalEntry(line.number, line.read.custom_id, event_id, msgspec.Raw(body))
            await running.results.note(entry)

        return asked_by(line.read, batch_id=batch.id, keep=keep, new_attempt_id=new_attempt_id)

    async def _tell(self, running: _Running) -> None:
        """Keep results and counts, and look whether the key still works."""
        looked_at = anyio.current_time()
        while True:
            await anyio.sleep(PROGRESS_S)
            running.results.flush()
            try:
                await self._put(running.counted())
                if anyio.current_time() - looked_at >= KEY_S:
                    looked_at = anyio.current_time()
                    await self._look_at_key(running)
            except Failure as failure:
                # The lines go on: their results are kept in files of their own.
                log.warning(
                    "batch.progress_not_kept", batch_id=running.batch.id, reason=str(failure)
                )

    async def _look_at_key(self, running: _Running) -> None:
        running.key = await anyio.to_thread.run_sync(self.find_key, running.batch.key_id)
        if running.key.revoked_at is not None:
            self._cancelled.add(running.batch.id)

    async def _finish(self, running: _Running) -> None:
        """Make the result files known, and then the end of the batch."""
        batch = self._at(running.counted(), "finalizing")
        await self._put(batch)
        for file_id, kind in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
            path = self.store.path_of(file_id)
            size = (await anyio.Path(path).stat()).st_size
            if not size:
                await anyio.Path(path).unlink()
                continue
            file = StoredFile(
                id=file_id,
                key_id=batch.key_id,
                filename=f"{batch.id}_{kind}.jsonl",
                purpose="batch_output",
                size=size,
                created_at=self._now(),
            )
            await anyio.to_thread.run_sync(self.store.put_file, file)
        ends: dict[str, Status] = {"cancelled": "cancelled", "expired": "expired"}
        over = self._at(batch, ends.get(running.stops, "completed"))
        await self._put(over)
        log.info(
            "batch.ended",
            batch_id=over.id,
            status=over.status,
            completed=over.completed,
            failed=over.failed,
        )

    def _open_results(self, batch: StoredBatch) -> BatchResults:
        output, errors = map(self.store.path_of, (batch.output_file_id, batch.error_file_id))
        try:
            results = BatchResults(
                batch.id, output=output, errors=errors, gather_max=self.lines_at_once
            )
            sync_folder(self.store.folder)
        except OSError as error:
            raise BatchesUnavailable(f"results cannot be kept: {error}") from error
        return results

    def _amounts(self, event_ids: Set[str]) -> Mapping[str, str]:
        found = self.gateway.outbox.amounts_of(frozenset(event_ids))
        return {**self.booked(event_ids - found.keys()), **found}

    def _at(self, batch: StoredBatch, status: Status) -> StoredBatch:
        moments = {**batch.moments, status: self._now()}
        return replace_batch(batch, status=status, moments=moments)

    async def _put(self, batch: StoredBatch) -> None:
        await anyio.to_thread.run_sync(self.store.put_batch, batch)

    def _now(self) -> int:
        return int(self.clock.now().timestamp())


def replace_batch(batch: StoredBatch, **changes: object) -> StoredBatch:
    return msgspec.structs.replace(batch, **changes)


def _json(client: WholeClient) -> msgspec.Raw | str:
    """What the upstream said, as it is if it is JSON."""
    assert client.refused is not None, "only a refusal has such a body"
    try:
        msgspec.json.decode(client.refused.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return client.refused.body.decode(errors="replace")[:1_000]
    return msgspec.Raw(client.refused.body)
