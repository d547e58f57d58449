"""The gateway's process: the HTTP application on one port, and what signals mean to it."""

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import anyio
import structlog
import uvicorn
import uvloop

from steelyard.app.gateway import open_gateway
from steelyard.entrypoints.guarded_protocol import guarded
from steelyard.entrypoints.logs import configure_logs
from steelyard.entrypoints.metrics_server import metrics_served
from steelyard.entrypoints.openai_api.application import GatewayApplication
from steelyard.entrypoints.openai_api.client_address import read_trusted_proxies
from steelyard.entrypoints.patience import start_patiently
from steelyard.listening import listen
from steelyard.settings import Settings

log = structlog.get_logger()

# How long attempts that are cut short may take to be recorded.
CLOSE_S: Final = 10.0
LOOK_AGAIN_S: Final = 0.02
METRICS_TIMEOUT_S: Final = 5.0


class DrainingServer(uvicorn.Server):
    """Stops in steps: it says that it is not ready; then it takes nothing new, and what is open may
    end; what has not by then is cut short and recorded. A second signal skips the waits."""

    def __init__(self, config: uvicorn.Config, *, tell: Callable[[], None], delay_s: float) -> None:
        super().__init__(config)
        self._tell = tell
        self._delay_s = delay_s
        self._is_draining = False

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals come through the event loop; afterwards the process ends by itself."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.drain)
        yield

    def drain(self) -> None:
        if self._is_draining:
            self.should_exit = self.force_exit = True
            return
        self._is_draining = True
        self._tell()
        open_count = len(self.server_state.tasks)
        log.info("gateway.draining", open_requests=open_count, delay_s=self._delay_s)
        asyncio.get_running_loop().call_later(self._delay_s, self._stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        tasks = self.server_state.tasks
        for task in tasks:
            task.cancel()
        if tasks:
            log.warning("gateway.drain_ended", cut_short=len(tasks))
        with anyio.move_on_after(CLOSE_S):
            while tasks:
                await anyio.sleep(LOOK_AGAIN_S)

    def _stop(self) -> None:
        self.should_exit = True


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
    config = uvicorn.Config(
        application,
        http=guarded(
            header_bytes_max=settings.header_bytes_max,
            header_timeout_s=settings.header_timeout_s,
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # It would believe what anybody on this machine writes; see client_address.
        proxy_headers=False,
        timeout_graceful_shutdown=settings.drain_s,
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
            server = DrainingServer(config, tell=application.drain, delay_s=settings.drain_delay_s)
            await server.serve(sockets=[listener])
