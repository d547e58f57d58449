"""The gateway's process: the HTTP application on one port."""

import socket

import uvicorn
import uvloop

from steelyard.app.gateway import open_gateway
from steelyard.entrypoints.logs import configure_logs
from steelyard.entrypoints.openai_api.application import GatewayApplication
from steelyard.entrypoints.openai_api.client_address import read_trusted_proxies
from steelyard.entrypoints.patience import start_patiently
from steelyard.listening import listen
from steelyard.settings import Settings

DRAIN_S = 30


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
        trusted_proxies=read_trusted_proxies(settings.trusted_proxies or ""),
    )
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # It would believe what anybody on this machine writes; see client_address.
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    async with application.running():
        await uvicorn.Server(config).serve(sockets=[listener])
