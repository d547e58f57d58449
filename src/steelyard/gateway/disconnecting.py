"""The client as the relay sees it: its stream starts with its first event, which waits for the
opening of the attempt, and it may leave before the answer is over."""

from dataclasses import dataclass

from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import opening_durable
from steelyard.gateway.relay import Client, ClientLeft
from steelyard.metering.answer_meter import AnswerMeter


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
