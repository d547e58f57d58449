"""Connections to one upstream: so many at most, kept for the next request, and opened anew.

A request is sent a second time in one case only: it went out on a connection that had been kept, and
that was closed at once and before any byte of an answer. So does a server end that which it has not
read from: its idle connections. A server that took the request and then died is not asked again here.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

import anyio.to_thread

from steelyard.gateway.upstreams.connecting import Origin, Secured, connect, trusting_context
from steelyard.gateway.upstreams.http_connection import ConnectionBroken, HttpConnection
from steelyard.gathered_writes import GatheredWrites

KEEP_S: Final = 30.0
# Within this time of a request does a server that closed an idle connection show it.
STALE_WITHIN_S: Final = 1.0
LINGER_S: Final = 1.0
CLOSE_WAIT_S: Final = 1.0


class PoolClosed(Exception):
    """There are no connections any more."""


@dataclass(frozen=True, slots=True)
class PoolRules:
    """How many connections there may be, how long one is kept, and how long it may take to open
    one."""

    connections_max: int
    connect_s: float
    keep_s: float = KEEP_S
    stale_within_s: float = STALE_WITHIN_S


class HttpPool:
    """Lends connections; whoever has asked on one gives it back, whatever became of the answer.

    Each that is open, or being opened, takes one of the places. One that dies while it is lent keeps
    its place until it is given back.
    """

    def __init__(self, origin: Origin, rules: PoolRules) -> None:
        self._origin = origin
        self._rules = rules
        self._secured: Secured | None = None
        self._loop = asyncio.get_running_loop()
        self._writes = GatheredWrites(self._loop)
        self._places = rules.connections_max
        # The one that was used last is used next, and the others get old.
        self._idle: list[HttpConnection] = []
        self._open: set[HttpConnection] = set()
        # Each is told of a connection, or of a place for one.
        self._waiting: deque[asyncio.Future[HttpConnection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def free_places(self) -> int:
        """How many more connections could be opened."""
        return self._places

    @property
    def idle_count(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    @property
    def open_count(self) -> int:
        """How many connections are open."""
        return len(self._open)

    async def open(self) -> None:
        """Get ready to ask; reading whom the system trusts takes a while."""
        if self._origin.is_secure:
            context = await anyio.to_thread.run_sync(trusting_context)
            self._secured = Secured(context, self._origin.host)

    async def ask(self, head: bytes, body: bytes, *, by_s: float) -> HttpConnection:
        """Ask, and wait for the beginning of an answer. Give the connection back.

        Raises PoolClosed, ConnectionBroken, and TimeoutError at that time.
        """
        connection = self._take_idle() or await self._take(by_s)
        try:
            connection.send(head, body)
            try:
                await connection.head(by_s=by_s)
            except ConnectionBroken:
                if not self._is_stale(connection):
                    raise
                # The new one has the place of the old one, which is closed already.
                connection = await self._connect(by_s)
                connection.send(head, body)
                await connection.head(by_s=by_s)
        except BaseException:
            self.give_back(connection)
            raise
        return connection

    def give_back(self, connection: HttpConnection, *, is_over: bool = False) -> None:
        """Keep the connection, or close it where its answer was not read to its end.

        `is_over` says that all is there but what frames it, which may yet come.
        """
        if connection.is_reusable and not self._is_closed:
            connection.rest()
            self._offer(connection)
        elif is_over and not connection.is_complete and not connection.is_lost:
            connection.linger(self.give_back, by_s=self._now() + LINGER_S)
        else:
            connection.abort()
            self._free_place()

    async def close(self) -> None:
        """Close all of them, with what is open on them."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(PoolClosed())
        self._waiting.clear()
        for connection in list(self._open):
            connection.abort()
        if self._open:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=CLOSE_WAIT_S)

    def _take_idle(self) -> HttpConnection | None:
        """The connection that was used last, if it is good still."""
        oldest_s = self._now() - self._rules.keep_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s > oldest_s and connection.is_reusable:
                return connection
            connection.abort()
            self._free_place()
        return None

    async def _take(self, by_s: float) -> HttpConnection:
        """A connection that is opened, or the next that is given back."""
        if self._is_closed:
            raise PoolClosed
        if self._places:
            self._places -= 1
        else:
            connection = await self._wait_for_place(by_s)
            if connection is not None:
                return connection
        try:
            return await self._connect(by_s)
        except BaseException:
            self._free_place()
            raise

    async def _wait_for_place(self, by_s: float) -> HttpConnection | None:
        waiter: asyncio.Future[HttpConnection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(None if by_s == float("inf") else by_s):
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was given what it does not want any more.
                given = waiter.result()
                self._free_place() if given is None else self.give_back(given)
            raise

    async def _connect(self, by_s: float) -> HttpConnection:
        """Open a connection; its place is taken already."""
        if self._is_closed:
            raise PoolClosed
        gives_up_s = min(by_s, self._now() + self._rules.connect_s)
        try:
            async with asyncio.timeout_at(gives_up_s):
                connection = await connect(self._origin, self._secured, made=self._make)
        except TimeoutError as error:
            if gives_up_s == by_s:
                raise
            raise ConnectionBroken("no connection in time") from error
        except OSError as error:
            raise ConnectionBroken("no connection") from error
        if self._is_closed:
            connection.abort()
            raise PoolClosed
        if not connection.is_lost:
            self._open.add(connection)
        return connection

    def _make(self) -> HttpConnection:
        return HttpConnection(self._loop, self._writes, on_lost=self._lose)

    def _lose(self, connection: HttpConnection) -> None:
        """It is closed; nobody has it if it was idle."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
            self._free_place()
        if self._emptied is not None and not self._open and not self._emptied.done():
            self._emptied.set_result(None)

    def _offer(self, connection: HttpConnection) -> None:
        """Whoever has waited longest has it; or it waits itself."""
        waiter = self._next_waiting()
        if waiter is not None:
            waiter.set_result(connection)
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweep_in(self._rules.keep_s)

    def _free_place(self) -> None:
        waiter = None if self._is_closed else self._next_waiting()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._places += 1

    def _next_waiting(self) -> "asyncio.Future[HttpConnection | None] | None":
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _sweep_in(self, pause_s: float) -> None:
        self._sweeper = self._loop.call_later(pause_s, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has needed for long; the oldest are first."""
        self._sweeper = None
        oldest_s = self._now() - self._rules.keep_s
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.pop(0).abort()
            self._free_place()
        if self._idle:
            # A timer may be early by less than this.
            self._sweep_in(self._idle[0].idle_since_s - oldest_s + 0.01)

    def _is_stale(self, connection: HttpConnection) -> bool:
        """Whether its server had closed it before the request came."""
        return (
            connection.request_count > 1
            and connection.is_lost
            and not connection.has_bytes
            and self._now() - connection.sent_s < self._rules.stale_within_s
        )

    def _now(self) -> float:
        return self._loop.time()
