"""The gateway's process: the HTTP application on one port, and what signals mean to it."""

import asyncio
import signal
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

import anyio
import structlog
import uvloop

from steelyard.app.gateway import open_gateway
from steelyard.clock import unix_seconds
from steelyard.collection import collect_seldom
from steelyard.entrypoints.guarded_protocol import GuardedProtocol, Serving
from steelyard.entrypoints.logs import configure_logs
from steelyard.entrypoints.metrics_server import metrics_served
from steelyard.entrypoints.openai_api.application import GatewayApplication
from steelyard.entrypoints.openai_api.client_address import read_trusted_proxies
from steelyard.entrypoints.patience import start_patiently
from steelyard.listening import BACKLOG, listen
from steelyard.settings import Settings

log = structlog.get_logger()

# How long attempts that are cut short may take to be recorded.
CLOSE_S: Final = 10.0
LOOK_AGAIN_S: Final = 0.02
METRICS_TIMEOUT_S: Final = 5.0
DATE_EVERY_S: Final = 1.0


class DrainingServer:
    """Stops in steps: it says that it is not ready; then it takes nothing new, and what is open may
    end; what has not by then is cut short and recorded. A second signal skips the waits."""

    def __init__(
        self, serving: Serving, *, tell: Callable[[], None], delay_s: float, drain_s: float
    ) -> None:
        self._serving = serving
        self._tell = tell
        self._delay_s = delay_s
        self._drain_s = drain_s
        self._is_draining = False
        self._is_hurried = False
        self._stopping = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until a signal comes; afterwards the process ends by itself."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.drain)
        self._tell_date()
        server = await loop.create_server(
            lambda: GuardedProtocol(self._serving), sock=listener, backlog=BACKLOG
        )
        await self._stopping.wait()
        server.close()
        listener.close()
        await self._shut_down()

    def drain(self) -> None:
        if self._is_draining:
            self._is_hurried = True
            self._stopping.set()
            return
        self._is_draining = True
        self._tell()
        open_count = len(self._serving.tasks)
        log.info("gateway.draining", open_requests=open_count, delay_s=self._delay_s)
        asyncio.get_running_loop().call_later(self._delay_s, self._stopping.set)

    async def _shut_down(self) -> None:
        connections, tasks = self._serving.connections, self._serving.tasks
        for connection in list(connections):
            connection.shut_down()
        with anyio.move_on_after(self._drain_s):
            while (connections or tasks) and not self._is_hurried:
                await anyio.sleep(LOOK_AGAIN_S)
        for task in tasks:
            task.cancel()
        if tasks:
            log.warning("gateway.drain_ended", cut_short=len(tasks))
        with anyio.move_on_after(CLOSE_S):
            # One that was cancelled before its first step stays among them.
            while not all(task.done() for task in tasks):
                await anyio.sleep(LOOK_AGAIN_S)

    def _tell_date(self) -> None:
        """Whole seconds are exact enough for a header, and need no look at the clock each time."""
        self._serving.date_line = f"date: {formatdate(unix_seconds(), usegmt=True)}\r\n"
        asyncio.get_running_loop().call_later(DATE_EVERY_S, self._tell_date)


def run_gateway(settings: Settings) -> None:
    """Serve until told to stop; open answers get some time to finish."""
    configure_logs("gateway")
    listener = listen(settings.host, settings.gateway_port, setting="STEELYARD_GATEWAY_PORT")
    start_patiently(
        lambda: uvloop.run(_serve(settings, listener)), patience_s=settings.books_patience_s
    )


async def _serve(settings: Settings, listener: socket.socket) -> None:
    application = GatewayApplication(
        lambda: open_gateway(settings),
        body_bytes_max=settings.request_bytes_max,
        form_bytes_max=settings.upload_bytes_max,
        body_timeout_s=settings.body_timeout_s,
        file_bytes_max=settings.file_bytes_max,
        trusted_proxies=read_trusted_proxies(settings.trusted_proxies or ""),
    )
    serving = Serving(
        application.answer,
        header_bytes_max=settings.header_bytes_max,
        header_timeout_s=settings.header_timeout_s,
    )
    loop = asyncio.get_running_loop()

    def expose() -> bytes:
        told = asyncio.run_coroutine_threadsafe(application.expose_metrics(), loop)
        return told.result(timeout=METRICS_TIMEOUT_S)

    # Until the very end: what was lost is known when the outbox has closed.
    serving_metrics = metrics_served(
        expose,
        host=settings.metrics_host,
        port=settings.gateway_metrics_port,
        setting="STEELYARD_GATEWAY_METRICS_PORT",
    )
    with serving_metrics:
        async with application.running():
            loop.add_signal_handler(signal.SIGHUP, application.look_at_configuration)
            server = DrainingServer(
                serving,
                tell=application.drain,
                delay_s=settings.drain_delay_s,
                drain_s=settings.drain_s,
            )
            collect_seldom()
            await server.serve(listener)
