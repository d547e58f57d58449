"""Serves `/metrics` on a port of its own, from a thread of its own: no key, so a private address."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import structlog

from steelyard.errors import Failure
from steelyard.listening import listen

log = structlog.get_logger()

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
IDLE_TIMEOUT_S: Final = 30.0
# How long stopping may take: the event loop of the gateway waits for it.
LOOK_S: Final = 0.1


@contextmanager
def metrics_served(
    expose: Callable[[], bytes], *, host: str, port: int, setting: str
) -> Generator[None]:
    """Serve what `expose` says while the block runs; port 0 serves nothing.

    Money does not wait for its metrics: a port that cannot be had is an error in the log.
    """
    if port == 0:
        yield
        return
    try:
        listener = listen(host, port, setting=setting)
    except Failure as failure:
        log.error("metrics.not_served", code=failure.code, reason=str(failure))
        yield
        return
    answer = partial(_Answer, expose)
    server = ThreadingHTTPServer(listener.getsockname(), answer, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(
        target=server.serve_forever, args=(LOOK_S,), name="metrics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    """`GET /metrics`, and nothing else."""

    timeout = IDLE_TIMEOUT_S

    def __init__(self, expose: Callable[[], bytes], *connection: Any) -> None:
        # Answering happens inside of what follows.
        self._expose = expose
        super().__init__(*connection)

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        try:
            body = self._expose()
        except Exception:
            log.exception("metrics.broke")
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("content-type", CONTENT_TYPE)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Whoever scrapes does so every few seconds: no line for that."""
        del format, args
