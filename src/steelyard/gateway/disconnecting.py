"""The client as the relay sees it: its stream starts with its first event, which waits for the
opening of the attempt, and it may leave before the answer is over."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType

from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import opening_durable
from steelyard.gateway.relay import Client, ClientLeft
from steelyard.metering.answer_meter import AnswerMeter
from steelyard.running_loop import running_loop


@dataclass(slots=True)
class HeldBackClient:
    """Implements EventTaker on a client."""

    client: Client
    admitted: Admitted
    meter: AnswerMeter
    outbox: Outbox
    headers: dict[str, str]
    # Whether the client has seen anything of this attempt; then no other can take its place.
    has_started: bool = False

    def leave(self) -> bool:
        """The client has gone: whether its answer is finished all the same."""
        if self.admitted.opened.disconnect_policy != "drain":
            return False
        self.meter.is_drained = True
        return True

    async def start(self) -> None:
        """Let the stream begin, if it has not."""
        if self.has_started:
            return
        await opening_durable(self.admitted, self.outbox)
        if not self.meter.is_drained:
            self.has_started = True
            await self.client.start_stream(self.headers)

    async def send(self, event: bytes) -> None:
        if not self.has_started:
            await self.start()
        if self.meter.is_drained:
            return
        try:
            await self.client.send(event)
        except ClientLeft:
            if not self.leave():
                raise


@dataclass(slots=True)
class StoppedByLeaving:
    """A block that is cancelled once the client has gone, unless its answer is finished all the
    same; such a cancellation ends here. One task does it all: nobody watches beside it."""

    client: HeldBackClient
    _task: "asyncio.Task[object]" = field(init=False)
    _cancelling: int = 0
    _has_stopped: bool = False
    _is_over: bool = False

    def __enter__(self) -> None:
        task = asyncio.current_task(running_loop())
        assert task is not None, "an attempt runs in a task"
        self._task, self._cancelling = task, task.cancelling()
        self.client.client.when_left(self._stop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._is_over = True
        self.client.client.when_left(None)
        if not self._has_stopped:
            return False
        # Whoever else has cancelled the task meanwhile still wants it to end.
        is_ours = self._task.uncancel() <= self._cancelling
        return is_ours and kind is asyncio.CancelledError

    def _stop(self) -> None:
        if not self._is_over and not self._has_stopped and not self.client.leave():
            self._has_stopped = True
            self._task.cancel()
