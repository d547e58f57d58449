"""The load of the gateway's benchmark: a closed loop, an open loop, or streams, from one process.

Reads the request from standard input, the header and the body with a blank line between, and sends
it as it is. `closed`: each connection asks again when it has its answer. `open`: so many requests
a second, whose time counts from when they were due. `paced`: one stream on each connection, whose
chunks say when they were due. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import httptools
import uvloop

DUE = re.compile(rb"@(\d+\.\d+) ")
DONE = b"[DONE]"
# What may still come after the time is over.
PATIENCE_S = 30.0
LATE_S = 0.1


class Asker(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(
        self, request: bytes, *, is_stream: bool, ended: Callable[["Asker"], None]
    ) -> None:
        self._request = request
        self._is_stream = is_stream
        self._ended = ended
        self._parser = httptools.HttpResponseParser(self)
        self.began = 0.0
        self.first_s = 0.0
        self.is_lost = False
        # What was wrong with the last answer: its status, or that the connection ended.
        self.fault = ""
        self.waits: list[float] | None = None
        self._is_asking = False
        # Whether it has had an answer before, and whether one has begun since it asked.
        self._is_kept = False
        self._has_begun = False
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, *, due: float | None = None) -> None:
        self.began = time.monotonic() if due is None else due
        self.first_s = 0.0
        self._has_begun = False
        self._tail = b""
        self._is_asking = True
        self._transport.write(self._request)

    @property
    def is_stale(self) -> bool:
        """Whether the server closed it, unused, as a request was on its way: HTTP clients ask again
        on another connection (RFC 9112, 9.3.1)."""
        return self.is_lost and self._is_kept and not self._has_begun

    def data_received(self, data: bytes) -> None:
        self._has_begun = True
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self._is_stream:
            return
        now = time.monotonic()
        if not self.first_s:
            self.first_s = now - self.began
        if self.waits is not None:
            self.waits.extend(now - float(due) for due in DUE.findall(body))
        self._tail = (self._tail + body)[-32:]

    def on_message_complete(self) -> None:
        is_whole = DONE in self._tail if self._is_stream else True
        status = self._parser.get_status_code()
        self.fault = f"status {status}" if status != 200 else ("" if is_whole else "no [DONE]")
        self._parser = httptools.HttpResponseParser(self)
        self._is_asking = False
        self._is_kept = True
        self._ended(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Servers close what has rested for long; that is no answer, and no wrong one."""
        self.is_lost = True
        if self._is_asking:
            self.fault = f"connection lost ({exc!r})"
            self._ended(self)


class Load:
    """So many connections, and what came back on them."""

    def __init__(self, options: argparse.Namespace, request: bytes) -> None:
        self._options = options
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._idle: list[Asker] = []
        self._open = 0
        self._is_stopping = False
        self._due: list[float] = []
        self._again: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.faults: Counter[str] = Counter()
        self.seconds = 0.0

    async def connect(self) -> None:
        self._idle = [await self._connect() for _ in range(self._options.connections)]

    async def _connect(self) -> Asker:
        _, asker = await self._loop.create_connection(
            self._make_asker, self._options.host, self._options.port
        )
        return asker

    def _make_asker(self) -> Asker:
        return Asker(self._request, is_stream=self._options.stream, ended=self._on_end)

    async def run_closed(self) -> None:
        began = time.monotonic()
        for asker in self._idle:
            self._ask(asker)
        await asyncio.sleep(self._options.seconds)
        self.seconds = time.monotonic() - began
        self.counts["in_time"] = self.counts["right"]
        await self._stop()

    async def run_open(self) -> None:
        """Each request when it is due, on a connection that is free, or as soon as one is."""
        began = time.monotonic()
        every_s = 1 / self._options.rate
        for number in range(int(self._options.seconds * self._options.rate)):
            due = began + number * every_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._idle = [asker for asker in self._idle if not asker.is_lost]
            if self._open < self._options.connections:
                asker = self._idle.pop() if self._idle else await self._connect()
                self._ask(asker, due=due)
            else:
                self._due.append(due)
        self.seconds = time.monotonic() - began
        await self._stop()

    async def run_paced(self, waits: list[float]) -> None:
        """One stream on each connection, begun one after the other over a second."""
        for asker in self._idle:
            asker.waits = waits
            self._ask(asker)
            await asyncio.sleep(1 / len(self._idle))
        await self._stop(within_s=self._options.seconds + PATIENCE_S)

    def _ask(self, asker: Asker, *, due: float | None = None) -> None:
        self._open += 1
        asker.ask(due=due)

    def _on_end(self, asker: Asker) -> None:
        if asker.is_stale:
            self.counts["stale"] += 1
            again = self._loop.create_task(self._ask_again(asker))
            self._again.add(again)
            again.add_done_callback(self._again.discard)
            return
        self._open -= 1
        if asker.fault:
            self.faults[asker.fault] += 1
        else:
            self.counts["right"] += 1
            self.latencies.append(time.monotonic() - asker.began)
            self.firsts.append(asker.first_s)
        if self._due and not asker.is_lost:
            self._ask(asker, due=self._due.pop(0))
        elif self._is_stopping and not self._open:
            if not self._over.done():
                self._over.set_result(None)
        elif self._options.mode == "closed" and not self._is_stopping and not asker.is_lost:
            self._ask(asker)
        else:
            self._idle.append(asker)

    async def _ask_again(self, stale: Asker) -> None:
        asker = await self._connect()
        asker.waits = stale.waits
        asker.ask(due=stale.began)

    async def _stop(self, *, within_s: float = PATIENCE_S) -> None:
        self._is_stopping = True
        if self._open or self._due:
            await asyncio.wait((self._over,), timeout=within_s)
        if self._open or self._due:
            self.faults["never ended"] += self._open + len(self._due)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


async def _run(options: argparse.Namespace, request: bytes) -> dict[str, Any]:
    load = Load(options, request)
    waits: list[float] = []
    await load.connect()
    if options.mode == "closed":
        await load.run_closed()
    elif options.mode == "open":
        await load.run_open()
    else:
        await load.run_paced(waits)
    return {
        "right": load.counts["right"],
        "wrong": load.faults.total(),
        "faults": dict(load.faults),
        "stale": load.counts["stale"],
        "per_s": load.counts["in_time"] / load.seconds if load.seconds else 0.0,
        "ms_p50": percentile(load.latencies, 0.5) * 1e3,
        "ms_p99": percentile(load.latencies, 0.99) * 1e3,
        "first_ms_p50": percentile(load.firsts, 0.5) * 1e3,
        "chunks": len(waits),
        "chunk_ms_p50": percentile(waits, 0.5) * 1e3,
        "chunk_ms_p99": percentile(waits, 0.99) * 1e3,
        "chunk_ms_max": max(waits, default=0.0) * 1e3,
        "late": sum(wait > LATE_S for wait in waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=("closed", "open", "paced"), default="closed")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--stream", action="store_true")
    request = sys.stdin.buffer.read()
    print(json.dumps(uvloop.run(_run(parser.parse_args(), request))))


if __name__ == "__main__":
    main()
