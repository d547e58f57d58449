"""The gateway's process: the HTTP application on one port."""

import asyncio
import socket

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

DRAIN_S = 30
METRICS_TIMEOUT_S = 5.0


def run_gateway(settings: Settings) -> None:
    """Serve until told to stop; open answers get half a minute to finish."""
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
        timeout_graceful_shutdown=DRAIN_S,
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
            await uvicorn.Server(config).serve(sockets=[listener])
