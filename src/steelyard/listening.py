"""Opens the port of a service, with an error that helps when it is taken."""

import errno
import socket

from steelyard.errors import Failure

BACKLOG = 2048


class PortInUse(Failure):
    """The port is taken by another program."""

    code = "port_in_use"


class AddressUnusable(Failure):
    """The address cannot be listened on."""

    code = "address_unusable"


def listen(host: str, port: int, *, setting: str) -> socket.socket:
    """A listening socket; raises PortInUse or AddressUnusable."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise AddressUnusable(f"{host}:{port} cannot be listened on: {error}") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is in use; stop what uses it, or choose another port "
                f"with {setting}"
            ) from error
        raise AddressUnusable(f"{host}:{port} cannot be listened on: {error}") from error
    return listener
