"""The relay's process: carries the outboxes of this machine to Kafka."""

import signal
import threading

import structlog

from steelyard.app.event_log import open_relay
from steelyard.entrypoints.logs import configure_logs
from steelyard.errors import Failure
from steelyard.settings import Settings

log = structlog.get_logger()

FAILURE_PAUSE_S = 1.0


def run_relay(settings: Settings) -> None:
    """Carry until told to stop. While Kafka is away the outboxes grow, up to their limit."""
    configure_logs("relay")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    relay = open_relay(settings)
    log.info("relay.started")
    while not stop.is_set():
        try:
            is_idle = relay.work() == 0
        except Failure as failure:
            log.error("relay.paused", code=failure.code, reason=str(failure))
            stop.wait(FAILURE_PAUSE_S)
            continue
        if is_idle:
            stop.wait(settings.worker_poll_s)
    relay.close()
    log.info("relay.stopped")
