"""The client as the relay sees it: its first byte waits for the opening of the attempt, and it may
leave before the answer is over."""

from dataclasses import dataclass

from steelyard.eventlog.outbox import Outbox
from steelyard.gateway.admission import Admitted
from steelyard.gateway.closing import opening_durable
from steelyard.gateway.relay import Client, ClientLeft
from steelyard.metering.answer_meter import AnswerMeter


@dataclass(slots=True)
class HeldBackClient:
    """Implements Client on another one."""

    client: Client
    admitted: Admitted
    meter: AnswerMeter
    outbox: Outbox

    def leave(self) -> bool:
        """The client has gone: whether its answer is finished all the same."""
        if self.admitted.opened.disconnect_policy != "drain":
            return False
        self.meter.is_drained = True
        return True

    async def start_stream(self, headers: dict[str, str]) -> None:
        await opening_durable(self.admitted, self.outbox)
        if not self.meter.is_drained:
            await self.client.start_stream(headers)

    async def send(self, event: bytes) -> None:
        if self.meter.is_drained:
            return
        try:
            await self.client.send(event)
        except ClientLeft:
            if not self.leave():
                raise

    async def left(self) -> None:
        await self.client.left()
