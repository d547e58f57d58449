"""Opens connections: names, the two families of addresses (RFC 8305), and TLS."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final
from urllib.parse import urlsplit

import anyio

from steelyard.gateway.upstreams.http_connection import HttpConnection

# After so long without an answer the next address is tried as well.
NEXT_ADDRESS_AFTER_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Origin:
    """The server that a URL names."""

    host: str
    port: int
    is_secure: bool

    @property
    def authority(self) -> str:
        """What the `Host` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Secured:
    """Who is trusted, and whose name the certificate must have."""

    context: ssl.SSLContext
    host: str


def origin_of(url: str) -> Origin:
    """Scheme, host and port of a URL; the host as the name system knows it."""
    parts = urlsplit(url)
    assert parts.scheme in {"http", "https"}, "the configuration is checked"
    assert parts.hostname, "the configuration is checked"
    is_secure = parts.scheme == "https"
    host = parts.hostname
    if not host.isascii():
        host = host.encode("idna").decode()
    return Origin(host, parts.port or (443 if is_secure else 80), is_secure)


def trusting_context() -> ssl.SSLContext:
    """Trust whom the system trusts; `SSL_CERT_FILE` names others, as everywhere."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def connect(
    origin: Origin, secured: Secured | None, *, made: Callable[[], HttpConnection]
) -> HttpConnection:
    """A connection to the first address that takes one; raises OSError."""
    loop = asyncio.get_running_loop()

    async def to(address: str) -> HttpConnection:
        _, connection = await loop.create_connection(
            made,
            address,
            origin.port,
            ssl=secured.context if secured else None,
            server_hostname=secured.host if secured else None,
        )
        return connection

    try:
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{origin.host} cannot be a name") from error
    addresses = in_turns([(family, str(place[0])) for family, _, _, _, place in found])
    if not addresses:
        raise OSError(f"{origin.host} has no address")
    return await to(addresses[0]) if len(addresses) == 1 else await connect_first(addresses, to)


def in_turns(found: Sequence[tuple[int, str]]) -> list[str]:
    """Addresses with their families in turns, the family of the first one first."""
    first = [address for family, address in found if family == found[0][0]]
    others = [address for family, address in found if family != found[0][0]]
    pairs = chain.from_iterable(zip_longest(first, others))
    return list(dict.fromkeys(address for address in pairs if address is not None))


async def connect_first(
    addresses: Sequence[str], to: Callable[[str], Awaitable[HttpConnection]]
) -> HttpConnection:
    """Try each, the next one when one has failed or takes long; raises OSError if all fail."""
    won: list[HttpConnection] = []
    errors: list[OSError] = []

    async def attempt(address: str, failed: anyio.Event) -> None:
        try:
            connection = await to(address)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if won:
            connection.abort()
            return
        won.append(connection)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, address, failed)
                with anyio.move_on_after(NEXT_ADDRESS_AFTER_S):
                    await failed.wait()
    except BaseException:
        for connection in won:
            connection.abort()
        raise
    if won:
        return won[0]
    raise errors[0]
